"""Fake plugins, the command line and layout errors, for the tests of core."""

from archon_testing.fake_plugins import archon, read_message, site

__all__ = ["archon", "read_message", "site"]
