"""Training: stages, one training loop, checkpoints. Independent of objectives and methods."""
