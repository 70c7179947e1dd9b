"""Diagnostics: what can be said of data and policies without training or sampling."""
