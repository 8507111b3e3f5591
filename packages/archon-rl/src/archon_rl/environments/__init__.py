"""Environments: what runs one, and the checks of what it returns. See ``archon_core.contracts.environments``."""
