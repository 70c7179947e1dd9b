"""Settings, registries, errors: text and YAML in, validated values out. Imports neither models nor data."""
