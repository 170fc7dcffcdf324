"""The rules of federated rounds, in plain Python."""
