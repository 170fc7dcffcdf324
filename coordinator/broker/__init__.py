"""The MQTT broker that the coordinator brings along when there is none to use."""
