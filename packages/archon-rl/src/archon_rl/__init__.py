"""Reinforcement learning and fine-tuning for Archon: rewards, advantages, losses, data sets and trainers."""

__version__ = "0.1.0"
