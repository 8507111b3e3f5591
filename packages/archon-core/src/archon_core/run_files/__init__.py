"""Formats of the files in a run folder that one package writes and others read. No torch."""
