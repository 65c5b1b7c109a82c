"""Where the training batches of a Trainer come from."""
