"""What tests of several packages lean on: brokers, clocks, small models."""
