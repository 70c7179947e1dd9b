"""The embedded demonstration: a real small model, a preference set made from its own replies, one command."""
