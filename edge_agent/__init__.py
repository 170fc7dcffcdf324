"""What runs beside the data: example store, local training, and taking part in rounds."""
