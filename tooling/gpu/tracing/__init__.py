"""A trace of one training step: see ``step.py``."""
