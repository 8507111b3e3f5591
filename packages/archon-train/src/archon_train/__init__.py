"""``archon train``: the configuration schema, dry runs, AReaL's dialect, launching and run folders."""

__version__ = "0.1.0"
