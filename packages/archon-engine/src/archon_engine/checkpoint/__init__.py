"""Checkpoints: Hugging Face folders for weights, distributed checkpoints to continue a run."""
