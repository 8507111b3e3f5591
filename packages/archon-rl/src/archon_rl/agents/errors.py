"""Errors of agents' sessions."""

from __future__ import annotations

from archon_core.errors import ArchonError


class SessionError(ArchonError):
    """A session that ended without a reward. It costs its group, not the run."""
