"""Measurements: ratios between ways to do the same thing, taken in one run on one machine."""
