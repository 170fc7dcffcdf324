"""What travels: topics, messages, signed envelopes, chunks of blobs."""
