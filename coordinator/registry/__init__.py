"""The registry of models: imported once, checked by digest, the same on every device."""
