"""Answering on the device: what is installed, and when the coordinator is asked."""
