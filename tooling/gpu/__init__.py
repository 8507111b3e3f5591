"""Checks of numbers and speed on a machine with a GPU; see ``check.py``."""
