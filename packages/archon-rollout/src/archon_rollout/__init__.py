"""Inference engines that sample completions, and the command that does so for a checkpoint folder."""

__version__ = "0.1.0"
