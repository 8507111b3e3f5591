"""Environments of other packages, as `archon_core.contracts.environments` describes them."""
