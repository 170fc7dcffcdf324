"""How the coordinator reaches its devices."""
