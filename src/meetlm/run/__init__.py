"""Runs: a recipe executed, a folder on disk, and the way back from it."""
