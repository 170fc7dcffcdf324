"""What both sides must agree on: errors, types, configuration, wire, privacy, crypto, models."""
