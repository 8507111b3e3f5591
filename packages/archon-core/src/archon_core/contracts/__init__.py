"""Contracts between packages, one module per topic: protocols, specs and the data that they exchange."""
