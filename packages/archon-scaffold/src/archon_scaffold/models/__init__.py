"""Generates a model package from a Hugging Face configuration: reads the architecture, writes and compares it."""
