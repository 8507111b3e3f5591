"""Sharding a module by its parallel plan. Model packages know nothing of it."""
