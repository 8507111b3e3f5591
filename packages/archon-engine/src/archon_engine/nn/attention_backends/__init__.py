"""Implementations of packed causal attention, one file each, chosen by ``archon_engine.nn.attention``."""
