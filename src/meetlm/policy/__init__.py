"""The policy: a language model with a control, and its log-probs. In training, only it calls the language model."""
