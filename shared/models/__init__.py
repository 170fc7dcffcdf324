"""Base models, the adapters trained on top of them, and how good they are."""
