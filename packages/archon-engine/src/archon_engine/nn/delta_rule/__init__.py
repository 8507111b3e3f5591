"""The gated delta rule: segments of packed sequences, the causal convolution before the rule, and the rule itself."""
