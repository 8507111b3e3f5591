"""``bind``: the socket on which a server will listen."""

from __future__ import annotations

import socket

from archon_core.errors import ConfigError


def bind(host: str, port: int, *, options: str) -> socket.socket:
    """A bound socket, before anything slow starts, so that a wrong address is an error at once.

    Args:
        host: name or address; empty for all addresses.
        port: 0 for any free one.
        options: how the user gave them, for the message.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{options}: cannot listen there ({error}); choose another port, or 0 for any free one"
        ) from error
    return listener
