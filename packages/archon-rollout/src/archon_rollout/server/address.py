"""The address under which others reach a server."""

from __future__ import annotations

from archon_core.ranks.addresses import own_address

ANYWHERE = ("0.0.0.0", "::")
"""Hosts that stand for all addresses of a machine."""


def advertised(listening: str, port: int, *, host: str | None = None) -> str:
    """``host:port`` for clients.

    Args:
        listening: address that the server listens on.
        port: its port.
        host: name or address of this machine; ``None`` for ``listening``, or for the machine's own address if that
            stands for all of them.
    """
    if host is None:
        host = own_address() if listening in ANYWHERE else listening
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
