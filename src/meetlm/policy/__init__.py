"""The policy: language model and control, and the log-probs they give. The only caller of lm.forward in training."""
