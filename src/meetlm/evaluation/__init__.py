"""Evaluation: completions in, comparisons out. Reads files of completions, never a model of ours; samples nothing."""
