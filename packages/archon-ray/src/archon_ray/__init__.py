"""Ray as a launcher of Archon's runs and as a registry of inference servers."""

__version__ = "0.1.0"
