"""Generation: the only sampler. Prompts and levels in, completions out."""
