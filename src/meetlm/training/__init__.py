"""Training: stages, one loop, checkpoints. Knows no loss formula and no method name."""
