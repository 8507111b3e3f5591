"""Finds the running servers of ``addresses`` at the start of a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from archon_core.contracts.serving import ServerDriver
from archon_rollout.pool.stopping import Stop, results_unless_stopped


def missing_servers(driver: ServerDriver, addresses: Sequence[str], *, timeout: float, stop: Stop) -> list[str]:
    """The addresses at which no server answers. All are called at once.

    Args:
        driver: calls the servers.
        addresses: ``host:port`` of each.
        timeout: limit of each call, in seconds.
        stop: whether the user has asked the run to stop; ends the wait for a server that hangs.

    Raises:
        StoppedError: the user stopped the run.
        ServerError: a server answers that it refuses this run, for instance because of another token.
    """
    calls = [partial(driver.ready, address, timeout=timeout) for address in addresses]
    records = results_unless_stopped(calls, stop, doing=f"looked for servers at {', '.join(addresses)}")
    return [address for address, record in zip(addresses, records, strict=True) if record is None]
