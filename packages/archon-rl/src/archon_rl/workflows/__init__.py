"""Workflows: ``rlvr`` and ``multi_turn``, and what runs any workflow. See ``archon_core.contracts.workflows``."""
