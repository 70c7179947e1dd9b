"""Preference data: sources -> examples -> levels -> encoded batches. Knows no model."""
