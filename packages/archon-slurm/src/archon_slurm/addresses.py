"""The address of this machine for the other machines of a job."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

ELSEWHERE = "192.0.2.1"
"""An address reserved for documentation (RFC 5737): nothing is sent there, but the system chooses a route to it."""


def own_address(name: str) -> str:
    """An address that other machines can reach.

    Args:
        name: of this machine in SLURM, which often resolves to the right interface.
    """
    for candidate in (name, socket.gethostname()):
        with contextlib.suppress(OSError):
            found = socket.gethostbyname(candidate)
            if not ipaddress.ip_address(found).is_loopback:
                return found
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ELSEWHERE, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"
