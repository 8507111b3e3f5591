"""Asynchronous against synchronous training on the same processes: one trainer, one server, one collector.

    hatch run bench-async              steps per second; five minutes on two idle cores
    hatch run bench-async --rewards    held-out reward after the same number of steps, three seeds; ten minutes

Both train ``examples/grpo_arithmetic_async.yaml``, with ``rollout.max_head_offpolicyness`` 0 and 2, with one thread per
process. Without ``--rewards``, runs of both kinds alternate in the order 0, 2, 2, 0, and start from the same weights. A
run's speed is the mean of its steps after the first, by the clock on the wall; /proc has processor seconds per step.
``archon simulate`` predicts the asynchronous runs from the times of the synchronous ones.

With ``--rewards``, every seed trains both ways from the same supervised start, two runs at a time, with operands up to
99, and 1,000 held-out problems are scored after the last step. Exits 1 when a bar is missed.
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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from process_times import seconds_by_role
from records import Figure, Measurement
from report import Report, add_json_option

from archon_rl.simulation.event_loop import scaled_to_batch, simulate
from archon_rl.simulation.run_times import read_run_times
from archon_rl.simulation.workload import Workload

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/grpo_arithmetic_async.yaml"
EXPERIMENT = "arithmetic"
STALENESS = 2
SPEED_STEPS = 25
REWARD_STEPS = 45
"""Fewer than the example's: differences show best before the reward is near its limit."""
REWARD_OPERAND = 99
REWARD_PROBLEMS = 1000
"""Held-out problems. With operands up to 99, 8,000 others remain to train on; the example has 2,500 in all, too few."""
RATIO_BAR = 1.4
OVERLAP_BAR = 0.85
"""Share of the best possible speedup, (r + u) / max(r, u) for sampling in r and training in u seconds."""
BALANCED = (0.5, 2.0)
"""r / u for which that bar holds."""
PREDICTION_BAR = 0.15
REWARD_BAR = 0.03
ROLES = {"archon_rl.collector": "collector", "archon_rl.rewards": "rewards", " serve ": "server"}
POLL_SECONDS = 0.01
SIMULATED_STEPS = 200


@dataclass(frozen=True)
class Speed:
    """A measured run.

    Attributes:
        staleness: its bound.
        seconds: per step.
        processor: role -> processor seconds per step.
        folder: the run folder.
    """

    staleness: int
    seconds: float
    processor: dict[str, float]
    folder: Path


def command_of(root: Path, trial: str, staleness: int, options: Iterable[str]) -> list[str]:
    program = "from archon_core.cli.main import main; main()"
    given = [f"cluster.fileroot={root}", f"trial_name={trial}", f"rollout.max_head_offpolicyness={staleness}"]
    quiet = ["trainer.eval_before_train=false", "trainer.eval_every=0", "trainer.save_every=0"]
    return [sys.executable, "-c", program, "train", str(EXAMPLE), *given, *quiet, *options]


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait():
        raise SystemExit(f"a run failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")


def prepare(root: Path) -> list[str]:
    """Train the supervised start; returns the options with which runs start from it."""
    log = root / "start.log"
    finish(start(command_of(root, "start", 0, ["trainer.max_steps=1", "trainer.verify_export=false"]), log), log)
    run, model = root / EXPERIMENT / "start", root / "model"
    shutil.copytree(run / "warm_start", model, ignore=shutil.ignore_patterns("checksums.json"))
    shutil.copytree(run / "tokenizer", model, dirs_exist_ok=True)
    return [f"actor.path={model}", "actor.model_config=null", "tokenizer.kind=pretrained", "warm_start.steps=0"]


def measure(root: Path, number: int, staleness: int, steps: int, options: Sequence[str]) -> Speed:
    """The speed of a run of ``steps`` steps after the first."""
    trial = f"turn-{number}-staleness-{staleness}"
    folder, log = root / EXPERIMENT / trial, root / f"{trial}.log"
    given = [*options, f"trainer.max_steps={steps + 1}", "trainer.verify_export=false", "trainer.eval_size=8"]
    process = start(command_of(root, trial, staleness, given), log)
    first = wait_for_rows(process, folder / "metrics.jsonl", 1, log)
    last = wait_for_rows(process, folder / "metrics.jsonl", steps, log)  # the row of the last step waits for its scores
    finish(process, log)
    seconds = (last[0] - first[0]) / (steps - 1)
    spent = {role: (last[1][role] - first[1].get(role, 0.0)) / (steps - 1) for role in last[1]}
    return Speed(staleness, seconds, spent, folder)


def wait_for_rows(process: subprocess.Popen[bytes], metrics: Path, n: int, log: Path) -> tuple[float, dict[str, float]]:
    """The moment when ``n`` steps have rows, and processor seconds by role."""
    while not metrics.exists() or metrics.read_bytes().count(b'"time/step"') < n:
        if process.poll() is not None:
            finish(process, log)
            raise SystemExit(f"a run ended before step {n}; its log is {log}")
        time.sleep(POLL_SECONDS)
    return time.monotonic(), seconds_by_role(process.pid, ROLES, "trainer")


def compare_speeds(root: Path, turns: int, steps: int, report: Report) -> None:
    """Measure and report the speeds."""
    options = prepare(root)
    order = [0, STALENESS, STALENESS, 0] * turns
    speeds = [measure(root, number, bound, steps, options) for number, bound in enumerate(order[: 2 * turns])]
    of = {bound: [one for one in speeds if one.staleness == bound] for bound in (0, STALENESS)}
    times = [read_run_times(one.folder) for one in of[0]]
    workload = workload_of(times)
    predicted = {bound: 1 / simulate(workload, bound, SIMULATED_STEPS).steps_per_second for bound in of}
    measured = {bound: mean(one.seconds for one in runs) for bound, runs in of.items()}
    sampling = mean(one.sampling_seconds for one in times)
    training = measured[0] - sampling
    balance = sampling / training
    ratio, best = measured[0] / measured[STALENESS], measured[0] / max(sampling, training)
    print("| staleness | step | predicted | trainer | server | collector | rewards |")
    print("|---|---|---|---|---|---|---|")
    for bound, runs in of.items():
        spent = [
            f"{mean(one.processor.get(role, 0.0) for one in runs):.2f} s"
            for role in ("trainer", "server", "collector", "rewards")
        ]
        each = ", ".join(f"{one.seconds:.2f}" for one in runs)
        print(f"| {bound} | {measured[bound]:.2f} s ({each}) | {predicted[bound]:.2f} s | {' | '.join(spent)} |")
    print(f"r = {sampling:.2f} s to sample a batch, u = {training:.2f} s for the rest of a step, r/u = {balance:.2f}")
    print(f"ratio {ratio:.2f}; the best possible is {best:.2f}, of which it reaches {ratio / best:.2f}")
    ours = Figure(measured[STALENESS], "s")
    report.add(
        Measurement(
            "asynchronous step",
            ratio,
            "higher",
            ours,
            Figure(measured[0], "s"),
            "synchronous",
            turns * steps,
            bar=RATIO_BAR,
            details={"sampling s": round(sampling, 3), "training s": round(training, 3)},
        )
    )
    report.add(
        Measurement(
            "share of the best possible speedup",
            ratio / best,
            "higher",
            Figure(ratio, ""),
            Figure(best, ""),
            "(r + u) / max(r, u)",
            turns * steps,
            bar=OVERLAP_BAR if BALANCED[0] <= balance <= BALANCED[1] else None,
        )
    )
    for bound in of:
        error = abs(predicted[bound] / measured[bound] - 1)
        report.add(
            Measurement(
                f"error of the predicted step at staleness {bound}",
                error / PREDICTION_BAR,
                "lower",
                Figure(predicted[bound], "s"),
                Figure(measured[bound], "s"),
                "measured",
                turns * steps,
                bar=1.0 if bound == STALENESS else None,
                compared=False,
            )
        )


def workload_of(times: Sequence) -> Workload:
    """The workload of the synchronous runs together."""
    workload = Workload(**{"group_seconds": 1.0} | times[0].options)
    workload = replace(
        workload,
        **{name: mean(one.options[name] for one in times) for name in ("train_seconds", "publish_seconds", "rejected")},
    )
    return scaled_to_batch(workload, mean(one.sampling_seconds for one in times), SIMULATED_STEPS)


def compare_rewards(root: Path, seeds: Sequence[int], steps: int, at_once: int, report: Report) -> None:
    """Train with every seed both ways, and report the held-out rewards."""

    def train(seed: int, staleness: int) -> dict[str, float]:
        trial = f"seed-{seed}-staleness-{staleness}"
        log = root / f"{trial}.log"
        options = [
            f"seed={seed}",
            f"data.arithmetic.max_operand={REWARD_OPERAND}",
            f"data.validation_size={REWARD_PROBLEMS}",
            f"trainer.max_steps={steps}",
            "trainer.verify_export=false",
        ]
        finish(start(command_of(root, trial, staleness, options), log), log)
        lines = (root / EXPERIMENT / trial / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        ages = [row["staleness"] for row in rows if "staleness" in row]
        return {
            "reward": rows[-1]["eval/reward"],
            "steps": rows[-1]["step"],
            "staleness": mean(ages),
            "seed": seed,
            "bound": staleness,
        }

    runs = [(seed, bound) for seed in seeds for bound in (0, STALENESS)]
    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(runs, pool.map(lambda run: train(*run), runs), strict=True))
    print("| seed | synchronous | asynchronous | its mean staleness |")
    print("|---|---|---|---|")
    for seed in seeds:
        ahead = found[seed, STALENESS]
        print(f"| {seed} | {found[seed, 0]['reward']:.3f} | {ahead['reward']:.3f} | {ahead['staleness']:.2f} |")
    means = {bound: mean(found[seed, bound]["reward"] for seed in seeds) for bound in (0, STALENESS)}
    lower = means[0] - means[STALENESS]
    print(f"means: {means[0]:.3f} and {means[STALENESS]:.3f}, {-lower:+.3f}")
    report.add(
        Measurement(
            "held-out reward, asynchronous / synchronous",
            means[STALENESS] / means[0],
            "higher",
            Figure(means[STALENESS], ""),
            Figure(means[0], ""),
            "synchronous",
            len(seeds),
        )
    )
    if lower > REWARD_BAR:
        report.fail(f"the reward may be lower by {REWARD_BAR}, it is by {lower:.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", action="store_true", help="compare held-out rewards")
    parser.add_argument("--turns", type=int, default=2, help="runs of each kind")
    parser.add_argument("--steps", type=int, help=f"of each run [{SPEED_STEPS}; with --rewards {REWARD_STEPS}]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--at-once", type=int, default=2, help="runs of --rewards at a time")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("asynchronous", options.json)
    with tempfile.TemporaryDirectory() as folder:
        if options.rewards:
            steps = options.steps or REWARD_STEPS
            compare_rewards(Path(folder), options.seeds, steps, options.at_once, report)
        else:
            compare_speeds(Path(folder), options.turns, options.steps or SPEED_STEPS, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
