"""Settings, registries, errors: strings and YAML in, checked values out. Knows nothing of models or data."""
