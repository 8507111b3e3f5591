"""Builds a sharded module with weights from a configuration."""
