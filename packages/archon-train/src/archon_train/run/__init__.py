"""The run folder, metrics, progress display and interruption of a run."""
