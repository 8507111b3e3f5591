"""Rollout: inference engines that sample completions from the weights in training."""

__version__ = "0.1.0"
