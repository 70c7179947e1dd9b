"""Generation, with the only sampler: prompts and levels in, completions out."""
