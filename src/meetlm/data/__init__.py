"""Preference data: sources -> examples -> levels -> encoded batches."""
