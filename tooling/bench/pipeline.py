"""How fast our executor runs pipeline schedules, against torch.distributed.pipelining on the same stages.

    hatch run bench-pipeline

Two pipeline ranks, one thread each. Both sides run the same modules (sharded by FSDP2 over a data axis of one rank) on
the same micro-batches, by turns in one run; a step is forward and backward of all micro-batches, without the
optimizer, and counts as long as it takes the slower rank. The median of each side counts.

- Fixed lengths: the same for both. The bar is on this one.
- Lengths that change every step: torch's schedules have one length, so they run everything padded to the longest.
- ZBV against 1F1B: what the zero-bubble schedule gains here, beside what the simulator predicts from the times of its
  own actions.

Exits with 1 when a schedule is above the bar, or the two sides' gradients differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from records import Figure, Measurement
from report import Report, add_json_option
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.plugins import ScheduleSpec
from archon_engine.models.staged import stages_of
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_pipeline.recording import Recording, parse_recording
from archon_pipeline.simulator import simulate
from archon_testing.worlds import run_world

BAR = 1.05
SAME = 1e-4
"""fp32 gradients added up in another order, relative to the largest of each tensor."""

SCHEDULES = ("1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")
RANKS = 2
LONGEST = 256
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def make_engine(schedule: str, n_micro_batches: int) -> TrainEngine:
    """An engine over all ranks of this world."""
    engine = assemble(
        ArchonEngineConfig(
            model_config=MODEL,
            dtype="float32",
            mb_spec=MicroBatchSpec(n_mbs=n_micro_batches),
            optimizer=OptimizerConfig(),
            archon=ArchonOptions(pp_schedule=schedule, enable_compile=False),
        ),
        role="actor",
        layout=parse_layout(f"archon:p{RANKS}"),
        seed=1,
        total_steps=None,
    )
    engine.initialize()
    return engine


class Sides:
    """One engine's stages, run by its own runner and by torch.

    Args:
        engine: the engine.
        schedule: of both.
        n_micro_batches: of every step.
    """

    def __init__(self, engine: TrainEngine, schedule: str, n_micro_batches: int) -> None:
        self._engine = engine
        self._number = n_micro_batches
        self._running = engine._running
        pipeline = self._running.assembled.pipeline
        assert pipeline is not None, "the layout has pipeline ranks"
        self._group = pipeline.group
        self.rank_of = pipeline.plan.rank_of
        self._stages = stages_of(engine.module)
        stages = [
            PipelineStage(stage, number, len(pipeline.plan), torch.device("cpu"), group=pipeline.group)
            for number, stage in pipeline.stages.items()
        ]
        self.is_first = 0 in pipeline.stages
        cls = get_schedule_class(schedule)
        one = len(stages) == 1
        self._schedule = cls(stages[0] if one else stages, n_micro_batches, loss_fn=self._loss, scale_grads=False)

    def micro_batches(self, length: int) -> list[MicroBatch]:
        """Of one sequence each, all of this length and alike."""
        ids = torch.arange(length) * 7 % MODEL["vocab_size"]
        batch = Batch.from_sequences([ids] * self._number)
        split = self._running.split
        return split.build(batch, [[n] for n in range(self._number)], OutputRequest(), self._number)

    def ours(self, micro_batches: list[MicroBatch]) -> None:
        """One step by our runner."""
        self._running.runner.train(micro_batches, lambda outputs, _: -outputs["logprobs"].sum() / LONGEST)

    def torchs(self, micro_batches: list[MicroBatch]) -> None:
        """One step by torch, which wants one tensor for all micro-batches and gives stages no dicts."""
        hooks = [stage.register_forward_hook(_tensor_of) for stage in self._stages]
        ids = torch.cat([micro_batch.input_ids for micro_batch in micro_batches])
        first = (ids,) if self.is_first else ()
        self._schedule.step(*first, target=ids, packed=micro_batches[0].packed)
        for hook in hooks:
            hook.remove()

    def gradients(self) -> list[torch.Tensor]:
        """Of this rank's parameters, which are cleared."""
        found = [parameter.grad.to_local().clone() for parameter in self._engine.parameters.values()]
        for parameter in self._engine.parameters.values():
            parameter.grad = None
        return found

    def time(self, step: Callable[[list[MicroBatch]], None], micro_batches: list[MicroBatch]) -> float:
        """Seconds of one step, of the slower rank."""
        dist.barrier()
        started = time.perf_counter()
        step(micro_batches)
        seconds = torch.tensor(time.perf_counter() - started)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        self.gradients()
        return float(seconds)

    def recording(self, micro_batches: list[MicroBatch]) -> Recording | None:
        """One step of ours, timed; on the first rank."""
        self._running.runner.record_next()
        self.ours(micro_batches)
        self.gradients()
        text = self._running.runner.recorded(step=1)
        return None if text is None else parse_recording(text, source="this step")

    @staticmethod
    def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -output.sum() / LONGEST


def _tensor_of(module: Any, args: Any, output: Any) -> Any:
    return output["logprobs"] if isinstance(output, dict) else output


def measure(schedule: str, n_micro_batches: int, rounds: int) -> dict[str, Any]:
    """Step times of both sides, the largest difference of gradients, and one recorded step."""
    torch.manual_seed(0)
    engine = make_engine(schedule, n_micro_batches)
    sides = Sides(engine, schedule, n_micro_batches)
    fixed = sides.micro_batches(LONGEST)
    differences = []
    sides.ours(fixed)
    expected = sides.gradients()
    sides.torchs(fixed)
    for own, other in zip(expected, sides.gradients(), strict=True):
        differences.append(float((own - other).abs().max() / other.abs().max().clamp(min=1e-12)))
    times: dict[str, list[float]] = {"ours": [], "torch": [], "ours, changing": [], "torch, changing": []}
    for number in range(rounds):
        length = LONGEST * (1 + number % 4) // 4
        changing = sides.micro_batches(length)
        times["ours"].append(sides.time(sides.ours, fixed))
        times["torch"].append(sides.time(sides.torchs, fixed))
        times["ours, changing"].append(sides.time(sides.ours, changing))
        times["torch, changing"].append(sides.time(sides.torchs, fixed))
    recordings = [sides.recording(fixed) for _ in range(3)]
    return {"times": times, "difference": max(differences), "recording": recordings[-1], "rank_of": sides.rank_of}


def predicted_seconds(found: dict[str, Any], n_micro_batches: int) -> float:
    """The simulated seconds of a schedule with the mean times of its recorded actions."""
    recording: Recording = found["recording"]
    spec = registry().get(ScheduleSpec, recording.schedule)
    actions = spec.load()(RANKS, len(found["rank_of"]), n_micro_batches)
    return simulate(actions, found["rank_of"], recording.mean_costs()).end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=16, help="a multiple of 4, the number of lengths")
    add_json_option(parser)
    options = parser.parse_args()
    report = Report("pipeline", options.json)
    print(f"torch {torch.__version__}, p{RANKS}, {options.micro_batches} micro-batches of up to {LONGEST} tokens")
    medians: dict[str, float] = {}
    predictions: dict[str, float] = {}
    for schedule in SCHEDULES:
        arguments = (schedule, options.micro_batches, options.rounds)
        ranks = run_world(measure, RANKS, arguments, time_limit=600)
        found = ranks[0]
        middle = {name: 1e3 * statistics.median(seconds) for name, seconds in found["times"].items()}
        whole = {name: 1e3 * statistics.fmean(seconds) for name, seconds in found["times"].items()}
        difference = max(rank["difference"] for rank in ranks)
        if difference > SAME:
            report.fail(f"{schedule}: gradients differ by {difference:.1e}, allowed {SAME:g}")
        for name, times, sides, bar in (
            (schedule, middle, ("ours", "torch"), BAR),
            (f"{schedule}, lengths that change", whole, ("ours, changing", "torch, changing"), None),
        ):
            ours, theirs = (Figure(times[side], "ms") for side in sides)
            ratio = ours.value / theirs.value
            against = "torch.distributed.pipelining"
            report.add(Measurement(name, ratio, "lower", ours, theirs, against, options.rounds, bar=bar))
        medians[schedule] = middle["ours"]
        predictions[schedule] = 1e3 * predicted_seconds(found, options.micro_batches)
    for schedule in SCHEDULES[1:]:
        measured, predicted = (times[schedule] / times["1F1B"] for times in (medians, predictions))
        report.add(
            Measurement(
                f"{schedule} / 1F1B, predicted / measured",
                predicted / measured,
                "higher",
                Figure(predicted, ""),
                Figure(measured, ""),
                "measured",
                options.rounds,
                compared=False,
            )
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
