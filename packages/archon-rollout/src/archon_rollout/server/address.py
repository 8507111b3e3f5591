"""The address under which others reach a server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

ANYWHERE = ("0.0.0.0", "::")
"""Hosts that stand for all addresses of a machine."""

ELSEWHERE = "192.0.2.1"
"""An address reserved for documentation (RFC 5737): nothing is sent there, but the system chooses a route to it."""


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


def own_address() -> str:
    """An address of this machine that other machines may reach; the loopback address if it has no other."""
    with contextlib.suppress(OSError):
        found = socket.gethostbyname(socket.gethostname())
        if not ipaddress.ip_address(found).is_loopback:
            return found
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ELSEWHERE, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"
