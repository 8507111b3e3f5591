"""Mixture of experts for Archon: router, grouped experts, dispatch over ranks, and load balancing."""

__version__ = "0.1.0"
