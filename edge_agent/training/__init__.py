"""Local training in a child process, with or without differential privacy."""
