"""The coordinator's own language model."""
