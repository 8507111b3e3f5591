"""Profiles of single steps: named ranges, traces, and snapshots of device memory."""
