"""How messages travel between coordinator, devices and key holder."""
