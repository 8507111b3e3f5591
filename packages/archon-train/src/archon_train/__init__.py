"""``archon train``: the schema of a run, dry runs, AReaL's dialect, launching and run folders."""

__version__ = "0.1.0"
