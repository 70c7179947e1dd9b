"""The policy: language model + tokenizer + control, and the log-probs it gives. The only caller of lm.forward in training."""
