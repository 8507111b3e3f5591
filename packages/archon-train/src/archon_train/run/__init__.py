"""A run as the user sees it: its folder, metrics, progress and interruption."""
