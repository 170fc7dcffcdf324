"""Watching for abuse: what was seen, by which rules it is an alarm, and who is told."""
