"""Diagnostics of data and policies that need neither training nor sampling."""
