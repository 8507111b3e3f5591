"""Calls to many servers at once, one thread each. A failing server becomes an outcome, never an exception."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from archon_core.contracts.weight_transport import Outcome
from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import Receipt

MAX_CALLS = 64
"""Calls to servers at once."""

ServerCall = Callable[[ServerRecord], Receipt | None]


def call_one(server: ServerRecord, call: ServerCall) -> Outcome:
    """Run one call and describe its result."""
    start = time.perf_counter()
    try:
        receipt = call(server)
    except UncertainCallError as error:
        return Outcome(None, _text(error), time.perf_counter() - start, uncertain=True)
    except ServerError as error:
        return Outcome(None, _text(error), time.perf_counter() - start)
    except Exception as error:
        # A driver talks to foreign programs; whatever it raises concerns one server, not the run.
        return Outcome(None, f"{type(error).__name__}: {error}", time.perf_counter() - start, uncertain=True)
    return Outcome(receipt, "", time.perf_counter() - start)


def call_each(executor: Executor, servers: Sequence[ServerRecord], call: ServerCall) -> dict[str, Outcome]:
    """Call all servers in parallel, the first one from this thread. Returns the outcome per incarnation."""
    futures = {server.incarnation: executor.submit(call_one, server, call) for server in servers[1:]}
    first = {server.incarnation: call_one(server, call) for server in servers[:1]}
    return first | {incarnation: future.result() for incarnation, future in futures.items()}


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
