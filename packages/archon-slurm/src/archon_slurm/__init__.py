"""SLURM as a launcher of Archon's runs."""

__version__ = "0.1.0"
