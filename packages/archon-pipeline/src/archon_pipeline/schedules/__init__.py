"""Schedules, one per module: pure functions from sizes to action lists. No torch."""
