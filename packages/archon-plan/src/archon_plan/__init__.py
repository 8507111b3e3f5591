"""Plans layouts: memory, traffic and time per rank, and the best layouts of a number of devices. Imports no torch."""

__version__ = "0.1.0"
