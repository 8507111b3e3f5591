"""Shows runs: ``archon report`` writes a page, ``archon watch`` follows them in the terminal. Imports no torch."""

__version__ = "0.1.0"
