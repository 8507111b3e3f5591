"""Starts packages for Archon: ``archon new model | schedule | reward | algorithm``."""

__version__ = "0.1.0"
