"""Worlds of several ranks in one test, and the oracle that holds every layout against one process."""

__version__ = "0.1.0"
