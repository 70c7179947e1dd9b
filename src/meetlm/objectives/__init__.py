"""Objectives: pure functions of log-probs, independent of files, optimizers and controls."""
