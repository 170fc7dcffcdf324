"""The device's local API, on loopback."""
