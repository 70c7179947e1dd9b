"""The embedded demonstration: a small model, replies in two tones and two lengths, one command."""
