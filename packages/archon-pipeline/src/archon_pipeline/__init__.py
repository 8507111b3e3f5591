"""Pipeline parallelism for Archon: how a model is cut into stages, what runs when, and the runner that does it."""

__version__ = "0.1.0"
