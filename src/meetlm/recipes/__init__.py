"""Recipes: named lists of stages, each a YAML file shipped in the package."""
