"""Data sets: JSON lines, Hugging Face data sets and generated arithmetic problems."""
