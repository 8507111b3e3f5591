"""How fast the search of `archon plan` is, and how well predicted step times agree with measured ones.

    hatch run bench-plan            # the search
    hatch run bench-plan --measure  # and five layouts in real worlds of CPU processes

The search looks for the best layouts of 1,024 devices. Its bar is five seconds.

For the measurement, five layouts of a small model train on the same sequences in gloo worlds of processes with one
thread each. Every world calibrates a device first, at the sizes of the model, so that both see the same load of the
machine; the plan predicts all steps from the medians. Printed are both times and their ratio, and whether the layouts
come in the same order. The fastest step of each layout counts, because other processes only ever slow a step down.
All layouts are measured several times by turns, which must repeat well enough to put most of them in an order
(``time_order``). Measure on a quiet machine: a collective waits for the slowest process, so other load slows down
layouts with many of them most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from records import Figure, Measurement
from report import Report, add_json_option
from time_order import Row, compare_orders

from archon_core import parse_layout, registry
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.pipeline import PIPELINE
from archon_core.models.anatomy import ModelAnatomy
from archon_core.plugins import ModelSpec, PipelineSpec, ScheduleSpec
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.calibrate import calibrate
from archon_plan.calibration_sizes import Sizes
from archon_plan.devices import Device, find_device
from archon_plan.parts import plan_stages, schedule_actions
from archon_plan.results import StepTime
from archon_plan.search import search
from archon_plan.search_space import Sought
from archon_plan.setting import Setting, Tokens, Types
from archon_plan.timing import step_time
from archon_testing.worlds import run_world

SEARCH_BAR = 5.0
"""Seconds for 1,024 devices."""

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 64,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
LENGTH = 256
SEQUENCES = 8

LAYOUTS = {
    2: (("d2", ""), ("t2", ""), ("c2", ""), ("p2", "1F1B"), ("p2", "Interleaved1F1B")),
    4: (("d4", ""), ("d2t2", ""), ("d2c2", ""), ("d2p2", "1F1B"), ("p4", "1F1B")),
}


def anatomy_of(entries: dict[str, Any]) -> ModelAnatomy:
    """The anatomy of a model from its configuration."""
    return registry().get(ModelSpec, entries["model_type"]).load_part("anatomy")(entries)


def micro_batches_of(layout: str) -> int:
    """Micro-batches of one sequence each on a data rank."""
    return SEQUENCES // parse_layout(f"archon:{layout}").dims["d"]


def measure(layout: str, schedule: str, rounds: int) -> Iterator[Device | float]:
    """The calibrated device, and seconds of each training step, of the slowest rank; the first two are left out."""
    import torch
    import torch.distributed as dist

    from archon_core import assemble
    from archon_core.contracts.batch import Batch
    from archon_testing.losses import NegativeLogLikelihood

    tensor = parse_layout(f"archon:{layout}").dims["t"]
    sizes = Sizes.of(anatomy_of(MODEL), tokens=LENGTH, sequence=LENGTH, tensor=tensor)
    yield calibrate(sizes, device_type="cpu", seconds=0.3)
    config = ArchonEngineConfig(
        model_config=MODEL,
        dtype="float32",
        gradient_checkpointing=False,
        mb_spec=MicroBatchSpec(n_mbs=micro_batches_of(layout)),
        optimizer=OptimizerConfig(),
        archon=ArchonOptions(pp_schedule=schedule or "1F1B", enable_compile=False),
    )
    engine = assemble(config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=1, total_steps=None)
    engine.initialize()
    ids = torch.arange(LENGTH) * 7 % MODEL["vocab_size"]
    batch = Batch.from_sequences([ids] * micro_batches_of(layout))
    for number in range(rounds + 2):
        dist.barrier()
        started = time.perf_counter()
        engine.train_batch(batch, NegativeLogLikelihood())
        seconds = torch.tensor(time.perf_counter() - started)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        if number > 1:
            yield float(seconds)
    engine.close()


def predict(layout: str, schedule: str, device: Device) -> StepTime:
    """What the plan says of a layout."""
    anatomy = anatomy_of(MODEL)
    dims = parse_layout(f"archon:{layout}").parallel_dims(moe=False, option="layout")
    tokens = Tokens(LENGTH, micro_batches_of(layout), LENGTH)
    spec = stages = None
    if dims.pp > 1:
        spec = registry().get(ScheduleSpec, schedule)
        none: Any = SimpleNamespace(
            pp_layers_per_stage=None, pp_first_stage_less_layers=None, pp_last_stage_less_layers=None
        )
        pipeline = registry().get(PipelineSpec, PIPELINE)
        stages = plan_stages(anatomy, pipeline, spec, n_ranks=dims.pp, options=none)
    setting = Setting(
        anatomy,
        dims,
        tokens,
        types=Types(compute=4, master=4, reduce=4),
        stages=stages,
        schedule=spec,
        actions=schedule_actions(spec, stages, dims.pp, tokens.n_micro_batches) if spec and stages else (),
        checkpointing="none",
        reshards=dims.pp == 1,
    )
    return step_time(setting, device)


def compare(n_ranks: int, rounds: int, turns: int, report: Report) -> None:
    """Measure and predict all layouts; they must come in the same order."""
    measured: dict[tuple[str, str], list[list[float]]] = {each: [] for each in LAYOUTS[n_ranks]}
    devices = []
    for layout, schedule in turns * LAYOUTS[n_ranks]:
        values: list[Any] = []
        run_world(measure, n_ranks, (layout, schedule, rounds), time_limit=300, on_value=_collect(values))
        devices.append(values[0])
        measured[layout, schedule].append(values[1:])
    device = _median(devices)
    # The processes of these worlds have one thread each, however many cores there are.
    device = device.with_figures({"cores": min(device.cores, n_ranks)}, source="one thread for each process")
    print(
        f"{n_ranks} ranks on {device.cores:g} cores, of which one has "
        f"{device.efficiency.dense * device.peak_fp32 / 1e9:.0f} GFLOP/s in dense products, "
        f"{device.memory_bandwidth / 1e9:.1f} GB/s of memory, {1e6 * device.launch:.1f} us to launch, links with "
        f"{device.node_bandwidth / 1e9:.2f} GB/s and {1e6 * device.node_latency:.0f} us"
    )
    print(f"{'layout':20} {'measured':>10} {'turns +':>8} {'median':>10} {'predicted':>10} {'ratio':>6}  limit")
    rows = []
    for (layout, schedule), seconds in measured.items():
        plan = predict(layout, schedule, device)
        row = Row(f"{layout} {schedule}".strip(), tuple(map(min, seconds)), plan.total)
        rows.append(row)
        report.add(
            Measurement(
                f"{n_ranks} ranks: {row.name}",
                plan.total / row.fastest,
                "higher",
                Figure(plan.total, "s"),
                Figure(row.fastest, "s"),
                "measured",
                rounds * turns,
                compared=False,
            )
        )
        print(
            f"{row.name:20} {1e3 * row.fastest:7.0f} ms {row.noise:8.0%} "
            f"{1e3 * statistics.median(itertools.chain(*seconds)):7.0f} ms "
            f"{1e3 * plan.total:7.0f} ms {plan.total / row.fastest:6.2f}  {plan.limit}"
        )
    order = compare_orders(rows)
    print("order of predicted times: " + (f"differs for {list(order.wrong)}" if order.wrong else "as measured"))
    if order.equal:
        print(f"without an order, since measured times repeat to {order.noise:.0%}: {', '.join(order.equal)}")
    for problem in order.problems():
        report.fail(f"{n_ranks} ranks: {problem}")


def _median(devices: list[Device]) -> Device:
    """The median of every figure."""
    rows = [{name: value for name, value, _ in device.rows() if not isinstance(value, str)} for device in devices]
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return devices[0].with_figures(figures, source="median")


def _collect(values: list[Any]) -> Any:
    def on_value(rank: int, value: Any) -> None:
        if rank == 0:
            values.append(value)

    return on_value


def time_searches(report: Report) -> None:
    """Search for layouts of 1,024 devices; every search has a bar."""
    moe = json.loads((Path(__file__).parents[2] / "tests/data/qwen3-30b-a3b.json").read_text(encoding="utf-8"))
    dense = {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
    large = {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
    for name, entries, sequences, length in (
        ("qwen3-30b-a3b", moe, 4096, 4096),
        ("qwen3-30b-a3b", moe, 256, 32768),
        ("qwen3-235b-a22b", large, 1024, 4096),
        ("qwen3-235b-a22b", large, 64, 8192),
        ("qwen3-32b", dense, 1024, 4096),
        ("qwen3-32b", dense, 128, 16384),
    ):
        anatomy = anatomy_of(entries)
        base = Setting(anatomy, parse_layout("archon:d1").parallel_dims(moe=False, option=""), Tokens(1, 1, length))
        started = time.perf_counter(), time.process_time()
        found = search(Sought(anatomy, find_device("h100"), sequences, base), 1024)
        wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
        print(
            f"{name:16} {sequences:5} x {length:5}: {wall:5.2f} s ({processor:.2f} s of processor time), "
            f"{found.layouts:,} layouts, {found.settings} settings replayed; best "
            f"{found.candidates[0].layout if found.candidates else 'none'}"
        )
        report.add(
            Measurement(
                f"search for 1,024 devices, {name}, {sequences} x {length}",
                wall / SEARCH_BAR,
                "lower",
                Figure(wall, "s"),
                Figure(SEARCH_BAR, "s"),
                "limit",
                1,
                bar=1.0,
                absolute=True,
                details={"layouts": found.layouts, "settings replayed": found.settings},
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure layouts in real worlds, too")
    parser.add_argument("--only-measure", action="store_true", help="leave out the search")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2], choices=sorted(LAYOUTS), help="sizes of the worlds"
    )
    parser.add_argument("--rounds", type=int, default=6, help="steps of each layout and turn")
    parser.add_argument("--turns", type=int, default=2, help="how often each layout is measured")
    add_json_option(parser)
    options = parser.parse_args()
    report = Report("plan", options.json)
    if not options.only_measure:
        time_searches(report)
    if options.measure or options.only_measure:
        for n_ranks in options.ranks:
            compare(n_ranks, options.rounds, options.turns, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
