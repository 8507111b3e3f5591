"""Checks that measure speed and memory; they fail only where they cannot run."""
