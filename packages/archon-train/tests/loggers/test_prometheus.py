"""The numbers of a run over HTTP, read with the parser of Prometheus's library."""

from __future__ import annotations

import logging
import math
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from archon_core.contracts.loggers import LoggedRun
from archon_core.errors import ConfigError
from archon_train.loggers.options import PrometheusOptions

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")

from archon_train.loggers.prometheus import PrometheusLogger, metric_name  # noqa: E402

TRIAL = 'a "b"\\c\nd'


@pytest.fixture
def served(tmp_path: Path) -> Iterator[PrometheusLogger]:
    logger = PrometheusLogger(PrometheusOptions(port=0), LoggedRun("e", TRIAL, tmp_path, {}))
    yield logger
    if logger._thread.is_alive():
        logger.close()


def scrape(logger: PrometheusLogger) -> dict[str, dict[str, float]]:
    """Family -> name of the number in ``metrics.jsonl``, or an empty text, -> value."""
    with urllib.request.urlopen(logger.address, timeout=10) as response:
        text, kind = response.read().decode(), response.headers["Content-Type"]
    assert kind.startswith("text/plain; version=")
    found: dict[str, dict[str, float]] = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation
        assert family.type == ("counter" if family.name == "archon_tokens" else "gauge")
        for sample in family.samples:
            assert (sample.labels.pop("experiment"), sample.labels.pop("trial")) == ("e", TRIAL)
            found.setdefault(sample.name, {})[sample.labels.pop("metric", "")] = sample.value
            assert not sample.labels
    return found


def test_a_scrape_has_the_last_value_of_every_number(served: PrometheusLogger) -> None:
    assert scrape(served) == {"archon_tokens_total": {"": 0}}
    served.log(1, {"loss": 1.5, "tokens": 10, "staleness/5": 1.0})
    served.log(1, {"eval/reward": 0.25})
    served.log(2, {"loss": math.nan, "gradient_norm": math.inf, "margin": -math.inf, "tokens": 30})
    found = scrape(served)
    assert math.isnan(found.pop("archon_loss")["loss"])
    assert found == {
        "archon_step": {"": 2},
        "archon_tokens_total": {"": 40},
        "archon_tokens_per_step": {"tokens": 30},
        "archon_gradient_norm": {"gradient_norm": math.inf},
        "archon_margin": {"margin": -math.inf},
        "archon_eval_reward": {"eval/reward": 0.25},
    }


def test_names_that_become_equal_keep_their_values(served: PrometheusLogger) -> None:
    served.log(1, {"eval/reward_failed": 1, "eval/reward/failed": 2})
    assert scrape(served)["archon_eval_reward_failed"] == {"eval/reward_failed": 1, "eval/reward/failed": 2}
    assert metric_name("eval/pass@8") == "archon_eval_pass_8"


def test_the_server_ends_with_the_run(served: PrometheusLogger) -> None:
    address = served.address
    served.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(address, timeout=10)


def test_the_address_is_logged(served: PrometheusLogger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    with caplog.at_level(logging.INFO, "archon_train"):
        second = PrometheusLogger(PrometheusOptions(port=0), LoggedRun("e", "t", tmp_path, {}))
    second.close()
    assert f"Metrics for Prometheus: {second.address}" in caplog.text


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"found port {port} of 127\.0\.0\.1.*allowed are a free port.*choose"):
            PrometheusLogger(PrometheusOptions(port=port), LoggedRun("e", "t", tmp_path, {}))
