"""Optimizers over named, sharded parameters, and learning-rate schedules."""
