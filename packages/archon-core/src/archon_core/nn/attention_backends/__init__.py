"""Implementations of packed causal attention, one file each, chosen by ``archon_core.nn.attention``."""
