"""Encrypted exact sums, and the keys that tell machines apart."""
