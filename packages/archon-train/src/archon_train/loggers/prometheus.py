"""Serves the latest numbers of a run to Prometheus, as ``GET /metrics`` in its text format."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.contracts.loggers import LoggedRun
from archon_core.errors import ConfigError
from archon_train.loggers.options import PrometheusOptions

logger = logging.getLogger(__name__)

PREFIX = "archon_"
EVALUATION = "eval/"
"""Prefix of numbers that stay until the next evaluation; others are those of the last step."""
_NOT_IN_NAMES = re.compile("[^a-zA-Z0-9_]")


class PrometheusLogger:
    """A ``MetricsLogger`` with an HTTP server in a thread.

    Args:
        options: address and port.
        run: whose.

    Raises:
        ConfigError: the port is taken, or the address is not one of this machine.
    """

    def __init__(self, options: PrometheusOptions, run: LoggedRun) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        assert options.port is not None, "is_used"
        self._numbers = LatestNumbers(run)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._numbers)
        try:
            self._server, self._thread = start_http_server(options.port, addr=options.host, registry=registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"stats_logger.prometheus: found port {options.port} of {options.host}, which cannot be opened "
                f"({error}); allowed are a free port and an address of this machine; choose another port, 0 for any "
                "free one, or null to serve no metrics"
            ) from error
        logger.info("Metrics for Prometheus: %s", self.address)

    @property
    def address(self) -> str:
        """URL of the metrics."""
        host, port, *_ = self._server.server_address
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/metrics"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsLogger``."""
        self._numbers.update(step, values)

    def close(self) -> None:
        """See ``MetricsLogger``."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class LatestNumbers:
    """The numbers of the last rows; a collector of ``prometheus_client``. Threads of the server read it.

    Every number is a gauge, named like ``archon_reward_failed`` with the labels ``experiment``, ``trial`` and
    ``metric``, the name in ``metrics.jsonl``: different names may become equal. ``archon_tokens_total`` counts tokens
    since this start of the run.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._labels = {"experiment": run.experiment, "trial": run.trial}
        self._lock = threading.Lock()
        self._step: int | None = run.resume_step
        self._values: dict[str, float] = {}
        self._tokens = 0.0

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Take a row."""
        with self._lock:
            if step != self._step:
                # A number that the new row lacks, such as staleness/5, is not of this step.
                self._values = {name: value for name, value in self._values.items() if name.startswith(EVALUATION)}
            self._step = step
            self._values.update(values)
            self._tokens += values.get("tokens", 0)

    def collect(self) -> Iterator[Any]:
        """The families of metrics; called for every request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            step, values, tokens = self._step, dict(self._values), self._tokens
        labels = [*self._labels]
        counted = CounterMetricFamily(f"{PREFIX}tokens", "Tokens since this start of the run.", labels=labels)
        counted.add_metric([*self._labels.values()], tokens)
        yield counted
        if step is not None:
            steps = GaugeMetricFamily(f"{PREFIX}step", "Training steps that are complete.", labels=labels)
            steps.add_metric([*self._labels.values()], step)
            yield steps
        families: dict[str, Any] = {}
        for name, value in values.items():
            full = metric_name(name)
            if full not in families:
                text = f"{name} of metrics.jsonl, in the last row that has it."
                families[full] = GaugeMetricFamily(full, text, labels=[*labels, "metric"])
            families[full].add_metric([*self._labels.values(), name], value)
        yield from families.values()


def metric_name(name: str) -> str:
    """The name of a number in Prometheus.

    >>> metric_name("server_version/127.0.0.1:8000")
    'archon_server_version_127_0_0_1_8000'
    """
    written = PREFIX + _NOT_IN_NAMES.sub("_", name)
    # Of the token counter, and of steps.
    return f"{written}_per_step" if written in (f"{PREFIX}tokens", f"{PREFIX}step") else written
