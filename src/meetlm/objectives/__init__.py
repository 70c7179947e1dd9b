"""Objectives: pure functions of log-probs. Know no file, no optimiser, no control."""
