"""Trainers: what turns a configuration into a run, in pieces of one concern each."""
