"""Action lists, one schedule per module. Pure functions; no torch."""
