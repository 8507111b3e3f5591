"""Tokens per second of ``served:d1`` against ``local``: same model, same batch, one process at work, one run.

The trainer waits while its server generates, so each engine has the machine to itself when it is measured. The
difference is what a server costs: JSON, HTTP, and a second thread in its process. Repetitions alternate, and the best
of each are compared. Then weights are published while the server generates: the switch, in which no token is made, is
measured by the server. Exits 1 when a bar is missed.

    python tooling/bench/served.py [--new-tokens 64] [--repetitions 5]
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

RATIO_BAR = 0.85
SWITCH_BAR_MS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = save_model(f"{folder}/model")
        print(f"Qwen3, {n_parameters / 1e6:.1f}M parameters, float32, {options.new_tokens} new tokens each")
        return compare(Path(folder), options.new_tokens, options.repetitions)


def compare(folder: Path, new_tokens: int, repetitions: int) -> int:
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
    missed = []
    try:
        served.update_weights(trainer.version)
        for workload in WORKLOADS:
            config = GenerationConfig(n_samples=workload.n_samples, max_new_tokens=new_tokens)
            requests = [
                GenerationRequest(tuple(prompt), config, tuple(range(i * config.n_samples, (i + 1) * config.n_samples)))
                for i, prompt in enumerate(prompts_of(workload))
            ]

            def count(engine, requests=requests) -> int:
                return sum(len(c.token_ids) for completions in engine.generate(requests) for c in completions)

            contestants = {"local": lambda count=count: count(local), "served:d1": lambda count=count: count(served)}
            rates = measure(contestants, repetitions, workload.n_sequences * new_tokens)
            ratio = rates["served:d1"] / rates["local"]
            print(f"\n{workload.name}")
            for name, rate in rates.items():
                print(f"  {name:<28}{rate:>9,.0f} tokens/s")
            print(f"  {'ratio':<28}{ratio:>9.2f}")
            if ratio < RATIO_BAR:
                missed.append(f"the ratio must be at least {RATIO_BAR:.2f}, it is {ratio:.2f}")
        switch = measure_switches(trainer, served, requests, folder / "servers" / "server-0.log")
        print(f"\n  {'switch of weights':<28}{switch:>9.2f} ms, the slowest of those under load")
        if switch > SWITCH_BAR_MS:
            missed.append(f"a switch must take at most {SWITCH_BAR_MS:g} ms, the slowest took {switch:.2f} ms")
    finally:
        served.close()
    for text in missed:
        print(f"\nmissed: {text}")
    return 1 if missed else 0


def measure_switches(trainer, served, requests, log: Path) -> float:
    """Milliseconds of the slowest of five switches while the server generates, from its own log."""
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            running = pool.submit(served.generate, requests)
            time.sleep(0.1)
            trainer._version += 1  # the weights may stay; the publication is the same
            served.update_weights(trainer.version)
            running.result()
    found = re.findall(r"weights: version \d+ -> \d+ \(generation stopped for ([\d.]+) ms\)", log.read_text("utf-8"))
    return max(float(one) for one in found[-5:])


if __name__ == "__main__":
    sys.exit(main())
