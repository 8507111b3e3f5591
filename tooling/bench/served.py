"""Tokens per second of ``served:d1`` against ``local``: same model, same batch, one process at work, one run.

The trainer waits while its server generates, so each engine has the machine to itself when it is measured. The
difference is what a server costs: JSON, HTTP, and a second thread in its process. Repetitions alternate, and medians
are compared. Then weights are published while the server generates: the switch, in which no token is made, is
measured by the server. Exits 1 when a bar is missed.

    python tooling/bench/served.py [--repetitions 5]
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from generate import WORKLOADS, measure, prompts_of, save_model
from records import Figure, Measurement
from report import Report, add_json_option

RATIO_BAR = 0.85
SWITCH_BAR_MS = 10.0
SWITCHES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("served", options.json)
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = save_model(f"{folder}/model")
        print(f"Qwen3, {n_parameters / 1e6:.1f}M parameters, float32")
        compare(Path(folder), options.repetitions, report)
    return report.finish()


def compare(folder: Path, repetitions: int, report: Report) -> None:
    """Measure both engines."""
    from archon_core import assemble
    from archon_core.contracts.engine_config import EngineConfig
    from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
    from archon_rollout.local_engine import LocalEngine
    from archon_rollout.served.engine import ServedEngine

    trainer = assemble(EngineConfig(path=str(folder / "model"), dtype="float32", optimizer=None))
    trainer.initialize()
    local = LocalEngine(RolloutConfig(), trainer=trainer)
    served = ServedEngine(RolloutConfig(backend="served:d1"), trainer=trainer, folder=folder / "servers")
    try:
        served.update_weights(trainer.version)
        # Requests have no option for the lengths of ragged workloads.
        for workload in [one for one in WORKLOADS if one.median is None]:
            config = GenerationConfig(n_samples=workload.n_samples, max_new_tokens=workload.new_tokens)
            requests = [
                GenerationRequest(tuple(prompt), config, tuple(range(i * config.n_samples, (i + 1) * config.n_samples)))
                for i, prompt in enumerate(prompts_of(workload))
            ]

            def count(engine, requests=requests) -> int:
                return sum(len(c.token_ids) for completions in engine.generate(requests) for c in completions)

            contestants = {"local": lambda count=count: count(local), "served:d1": lambda count=count: count(served)}
            rates = measure(contestants, repetitions, sum(workload.lengths))
            served_rate, local_rate = (Figure(rates[name], "tokens/s") for name in ("served:d1", "local"))
            ratio = served_rate.value / local_rate.value
            report.add(
                Measurement(
                    workload.name, ratio, "higher", served_rate, local_rate, "local", repetitions, bar=RATIO_BAR
                )
            )
        switch = measure_switches(trainer, served, requests, folder / "servers" / "server-0.log")
        report.add(
            Measurement(
                "slowest switch of weights under load",
                switch / SWITCH_BAR_MS,
                "lower",
                Figure(switch, "ms"),
                Figure(SWITCH_BAR_MS, "ms"),
                "limit",
                SWITCHES,
                bar=1.0,
                absolute=True,
                compared=False,
            )
        )
    finally:
        served.close()


def measure_switches(trainer, served, requests, log: Path) -> float:
    """Milliseconds of the slowest switch while the server generates, from its own log."""
    with ThreadPoolExecutor(1) as pool:
        for _ in range(SWITCHES):
            running = pool.submit(served.generate, requests)
            time.sleep(0.1)
            assert not running.done(), "the server has to generate while its weights change"
            trainer._version += 1  # the weights may stay; the publication is the same
            served.update_weights(trainer.version)
            running.result()
    found = re.findall(r"weights: version \d+ -> \d+ \(generation stopped for ([\d.]+) ms\)", log.read_text("utf-8"))
    return max(float(one) for one in found[-SWITCHES:])


if __name__ == "__main__":
    sys.exit(main())
