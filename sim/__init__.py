"""Many virtual devices on one machine, running the very same code."""
