"""Passages that are kept with their embeddings, and found again by meaning."""
