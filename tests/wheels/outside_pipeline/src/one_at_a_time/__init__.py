"""A rival of archon-pipeline that imports nothing of Archon but archon_core: the shortest runner there is."""
