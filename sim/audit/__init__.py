"""Tries to find out what a run promised to hide."""
