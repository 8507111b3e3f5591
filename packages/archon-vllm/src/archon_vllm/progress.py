"""Whether a vLLM server makes tokens, by its counters: ``/health`` answers also while the engine hangs."""

from __future__ import annotations

import re
import time

from archon_core.serving.http_client import exchange

COUNTERS = re.compile(r"^vllm:(?:prompt|generation)_tokens_total(?:\{.*\})? (\S+)", re.MULTILINE)
"""Values of vLLM's counters of tokens, in the text format of Prometheus."""

POLL_SECONDS = 0.2


def makes_tokens(address: str, *, token: str, timeout: float) -> bool:
    """Whether the counters rise within the time limit. False without counters, such as with ``--disable-log-stats``.

    Raises:
        ServerError: the server cannot be reached, or does not answer.
    """
    deadline = time.monotonic() + timeout
    first = _n_tokens(address, token, timeout)
    while first is not None and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))
        if _n_tokens(address, token, timeout) != first:
            return True
    return False


def _n_tokens(address: str, token: str, timeout: float) -> float | None:
    """Tokens that the server has processed since its start; ``None`` if it does not count them."""
    _, content = exchange(address, "GET", "/metrics", token=token, timeout=timeout)
    values = COUNTERS.findall(content.decode(errors="replace"))
    return sum(map(float, values)) if values else None
