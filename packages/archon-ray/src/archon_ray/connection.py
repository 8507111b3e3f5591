"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray

from archon_ray.machine import NODE_ADDRESS
from archon_ray.remote import RayError

NAMESPACE = "archon"

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's shared memory for objects, of a Ray that runs for one run: Archon stores none there."""


def connect(address: str | None, *, node_address: str | None = None) -> bool:
    """Connect to a cluster, unless this process has a connection.

    Args:
        address: ``HOST:PORT``, ``auto``, or ``local`` to start Ray here; null for ``RAY_ADDRESS``, else ``auto``.
        node_address: this machine's address in the cluster; null for the launcher's, else Ray finds it.

    Returns:
        Whether a cluster was found.

    Raises:
        RayError: the cluster at ``address`` does not answer.
    """
    if ray.is_initialized():
        return True
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if wanted == "local" else {}
    if wanted == "local":
        # Ray gives its processes a niceness of 15 by default, which ranks would inherit.
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
            os.environ.setdefault(name, "0")
    place = node_address or os.environ.get(NODE_ADDRESS)
    place_option = {"_node_ip_address": place} if place and wanted != "local" else {}
    try:
        with _signals_kept():
            ray.init(
                address=wanted,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.WARNING,
                **local,
                **place_option,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if wanted == "auto" and address is None and isinstance(error, ConnectionError):
            return False
        raise RayError(
            f"ray.address: cannot connect to Ray at {wanted}: {str(error).strip() or type(error).__name__}; start it "
            "with `ray start --head` and run archon train on a machine of the cluster, or correct the address"
        ) from error
    return True


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore signal handlers: Ray replaces that of SIGTERM, by which ranks stop after their step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def disconnect() -> None:
    """End the connection; a Ray that was started here ends, too. Idempotent."""
    with _signals_kept():
        ray.shutdown()
