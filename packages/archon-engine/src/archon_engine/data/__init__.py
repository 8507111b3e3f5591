"""Batches of packed sequences and their split into micro-batches."""
