"""The side with the large model: federated rounds, fleet, store and HTTP API."""
