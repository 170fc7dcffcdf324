"""Clipping, quantising, accounting and the release seed: what a device promises its owner."""
