"""GRPO end to end against TRL's GRPOTrainer: same model, prompts, rewards, lengths and updates, in one run.

    hatch run bench-grpo --install          makes TRL's environment in a cache folder, then compares
    hatch run bench-grpo --trl-python PATH  compares with the TRL of another environment

Both train a Qwen3 of hidden size 256 with 4 layers in fp32 on two threads: one update per batch, no recomputation, no
KL penalty, rewards in the trainer's process. TRL generates with transformers' ``generate``.

Lengths are given, and the same for both: in the logits of every step, the end token is excluded before a completion has
its length, and forced there. Both sides apply the same function to their logits, TRL as a logits processor, Archon
before it samples. So neither runs longer completions than the other, and neither saves work that its own sampling would
have cost. Ragged lengths are new in every step: lognormal with median 48, at most 256 tokens.

Two processes take turns, one step each. The time of a step is that of the trainer's whole loop: from the permission to
begin a step until it waits for the next one. Medians count, over the turns of all seeds after the warm-up. The floor is
the time of the matrix products of a step alone, those of linear layers and head: every decoded token for the rows that
still run, and forward and both gradients of the update, whose head sees completion tokens only; prompts once per group
in both. Exits 1 when a ratio misses its bar, or when Archon's mean reward after equal steps is lower than TRL's by more
than sampling and, where there are several seeds, the differences between TRL's runs explain.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, variance
from typing import Any

import torch
from grpo_case import FLOOR, MODEL, PROMPT_TOKENS, SHAPES, THREADS, TRL, Shape, save_model
from records import Figure, Measurement
from report import Report, add_json_option

PINNED = ("torch==2.13.0", "transformers==5.23.0", "trl==1.13.0", "requests==2.34.2")
"""TRL's environment; TRL 1.13 imports requests without declaring it."""
WARM_UP = 1
REWARD_TURNS = 0.5
"""Share of the turns, the last ones, whose rewards are compared."""
STANDARD_ERRORS = 3
"""Difference of mean rewards that chance explains. The variance of a token's reward is at most a quarter."""
BENCH = Path(__file__).parent
ARCHON = "archon"


class Worker:
    """A training process that makes one step per turn.

    Args:
        python: interpreter.
        script: its file in this folder.
        arguments: shape, seed, model folder, folder to write to.
    """

    def __init__(self, python: str, script: str, arguments: Sequence[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
        self._log = Path(arguments[-1]) / f"{script}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(BENCH / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=BENCH,
            )
        self._read()

    def step(self) -> dict[str, Any]:
        """Make a step; returns its report with its seconds."""
        assert self._process.stdin is not None
        start = time.perf_counter()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        report = self._read()
        return {**report, "seconds": time.perf_counter() - start}

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            text = self._log.read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"{self._process.args[1]} failed:\n{text[-3000:]}")  # type: ignore[index]
        return json.loads(line)


def products_alone(shape: Shape, step: int) -> Callable[[], None]:
    """The products of linear layers and head in one step."""
    hidden, inner, head_dim = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["head_dim"]
    queries, keys = MODEL["num_attention_heads"] * head_dim, MODEL["num_key_value_heads"] * head_dim
    layer = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    layer += [(hidden, inner), (hidden, inner), (inner, hidden)]
    body, head = layer * MODEL["num_hidden_layers"], (hidden, MODEL["vocab_size"])
    lengths = shape.lengths(step).flatten()
    completions = int(lengths.sum())
    tokens = completions + PROMPT_TOKENS * shape.prompts
    # The first token of a completion comes from its prompt, and the last one is never fed back.
    decoded = [int((lengths > n).sum()) for n in range(1, int(lengths.max()))]
    weights = {size: torch.randn(size[1], size[0]) for size in {*body, head}}
    inputs, outputs = ({width: torch.randn(tokens, width) for size in weights for width in size} for _ in range(2))

    def forward(rows: int, size: tuple[int, int]) -> None:
        torch.mm(inputs[size[0]][:rows], weights[size].T, out=outputs[size[1]][:rows])

    def train(rows: int, size: tuple[int, int]) -> None:
        forward(rows, size)
        gradient = inputs[size[1]][:rows]
        torch.mm(gradient, weights[size], out=outputs[size[0]][:rows])
        torch.mm(gradient.T, inputs[size[0]][:rows])

    def run() -> None:
        for size in body:
            forward(PROMPT_TOKENS * shape.prompts, size)
        forward(shape.prompts, head)
        for rows in decoded:
            for size in (*body, head):
                forward(rows, size)
        for size in body:
            train(tokens, size)
        train(completions, head)

    return run


def compare(name: str, trl_python: str, versions: Mapping[str, str], turns: int, report: Report) -> None:
    """Measure and report one shape."""
    shape = SHAPES[name]
    runs = [_run(name, trl_python, seed, turns) for seed in range(1, shape.seeds + 1)]
    measured = {side: [row for run in runs for row in run[side]] for side in (ARCHON, TRL, FLOOR)}
    seconds = {side: median(one["seconds"] for one in found) for side, found in measured.items()}
    # Ragged steps differ in their tokens, so ratios are taken within a turn.
    ratios = {
        side: median(one["seconds"] / own["seconds"] for one, own in zip(found, measured[ARCHON], strict=True))
        for side, found in measured.items()
    }
    parts = {key: median(one["parts"][key] for one in measured[ARCHON]) for key in ("rollout", "update", "step")}
    last = -max(1, round(turns * REWARD_TURNS))
    found = {side: [mean(one["reward"] for one in run[side][last:]) for run in runs] for side in (ARCHON, TRL)}
    rewards = {side: mean(of_runs) for side, of_runs in found.items()}
    compared = sum(one["tokens"] for run in runs for one in run[ARCHON][last:])
    squared_error = 2 * 0.25 / compared
    if len(runs) > 1:
        squared_error = max(squared_error, 2 * variance(found[TRL]) / len(runs))
    slack = STANDARD_ERRORS * squared_error**0.5
    details: dict[str, float | str] = {
        "completion tokens": median(one["tokens"] for one in measured[ARCHON]),
        **{f"{part} s": value for part, value in parts.items()},
        **{f"reward of {side}": value for side, value in rewards.items()},
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }
    # Where completions have one length, both sides are bound by the same products: reaching the floor is enough.
    at_floor = FLOOR in shape.bars and ratios[FLOOR] >= shape.bars[FLOOR]
    bars = {TRL: None if at_floor else shape.bars[TRL]}
    for side in (FLOOR, TRL):
        report.add(
            Measurement(
                f"{name}: {side}",
                ratios[side],
                "higher",
                Figure(seconds[ARCHON], "s"),
                Figure(seconds[side], "s"),
                side,
                len(measured[side]),
                bar=bars.get(side),
                details=details if side == TRL else {},
            )
        )
    if rewards[ARCHON] < rewards[TRL] - slack:
        report.fail(
            f"{name}: found a mean reward of {rewards[ARCHON]:.3f} after equal steps; TRL's is {rewards[TRL]:.3f}"
        )


def _run(name: str, trl_python: str, seed: int, turns: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of one run of each side after its warm-up, and the seconds of the products alone."""
    rows: dict[str, list[dict[str, Any]]] = {ARCHON: [], TRL: [], FLOOR: []}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        arguments = [name, str(seed), str(Path(folder) / "model"), folder]
        workers = {
            ARCHON: Worker(sys.executable, "grpo_archon.py", arguments),
            TRL: Worker(trl_python, "grpo_trl.py", arguments),
        }
        try:
            for turn in range(WARM_UP + turns):
                for side, worker in workers.items():
                    rows[side].append(worker.step())
                products = products_alone(SHAPES[name], turn)
                start = time.perf_counter()
                products()
                rows[FLOOR].append({"seconds": time.perf_counter() - start})
        finally:
            for worker in workers.values():
                worker.close()
    tokens = [[one["tokens"] for one in rows[side]] for side in (ARCHON, TRL)]
    if tokens[0] != tokens[1]:
        raise SystemExit(f"{name}, seed {seed}: found other numbers of completion tokens: {tokens[0]} and {tokens[1]}")
    return {side: found[WARM_UP:] for side, found in rows.items()}


def default_environment() -> Path:
    """Where ``--install`` puts TRL."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "archon-bench" / "-".join(requirement.replace("==", "-") for requirement in PINNED)


def install(folder: Path) -> None:
    """Make TRL's environment, if it does not exist."""
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *PINNED], check=True)
        (folder / "done").touch()


def versions_of(python: str) -> dict[str, str]:
    """Versions in TRL's environment.

    Raises:
        SystemExit: there is no such interpreter, or it has no TRL.
    """
    names = "('trl', 'transformers', 'torch')"
    program = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    exists = shutil.which(python) is not None
    found = subprocess.run([python, "-c", program], capture_output=True, text=True) if exists else None
    if found is None or found.returncode:
        raise SystemExit(
            f"--trl-python: found no TRL in {python}; make an environment with 'python3 -m venv FOLDER' and "
            f"'FOLDER/bin/pip install {' '.join(PINNED)}', or use --install"
        )
    return json.loads(found.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of the shapes [all]")
    parser.add_argument("--turns", type=int, help="measured steps of each side [15 or 5, by shape]")
    parser.add_argument("--trl-python", metavar="PATH", help="interpreter of an environment with TRL")
    parser.add_argument("--install", action="store_true", help="make TRL's environment in a cache folder")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("grpo", options.json)
    if options.install:
        install(default_environment())
    python = options.trl_python or str(default_environment() / "bin/python")
    if not options.trl_python and not Path(python).exists():
        return report.skip(f"found no TRL in {default_environment()}; --install makes that environment")
    versions = versions_of(python)
    torch.set_num_threads(THREADS)
    for name in options.shape or SHAPES:
        print(f"\n{name}: {SHAPES[name].prompts} prompts x {SHAPES[name].samples} samples")
        compare(name, python, versions, options.turns or SHAPES[name].turns, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
