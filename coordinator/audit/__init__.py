"""The audit log: who did what to the coordinator, in a chain that proves itself whole."""
