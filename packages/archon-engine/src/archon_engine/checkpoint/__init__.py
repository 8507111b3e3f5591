"""Checkpoints: Hugging Face folders for weights, and distributed checkpoints to continue a run from."""
