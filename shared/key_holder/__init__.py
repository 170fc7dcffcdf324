"""The process that opens sums, and never one update."""
