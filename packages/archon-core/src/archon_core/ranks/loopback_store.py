"""The store through which ranks on one machine find each other. It has no password, so only this machine reaches it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOCALHOST = "127.0.0.1"

WAITING = 1024
"""Connections that may wait to be accepted."""


def listen_on_loopback() -> socket.socket:
    """A socket that listens on a free port of the loopback interface. ``TCPStore`` by itself listens on all."""
    listener = socket.socket()
    listener.bind((LOCALHOST, 0))
    listener.listen(WAITING)
    return listener


def serve_store(listener: socket.socket) -> TCPStore:
    """A store that answers on the socket of ``listen_on_loopback``, which it takes over."""
    from torch.distributed import TCPStore

    port = listener.getsockname()[1]
    return TCPStore(LOCALHOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def serve_loopback_store() -> TCPStore:
    """A store on a free port of the loopback interface."""
    return serve_store(listen_on_loopback())
