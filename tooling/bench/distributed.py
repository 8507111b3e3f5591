"""What two ranks cost against one process with the same total work, per axis of a layout.

    hatch run bench-distributed [--rounds 10]

Every layout of two ranks, with one thread each, trains on the same tokens as one process with two threads; their worlds
run by turns, and medians count. Details are, of one step on the rank that sends most: milliseconds in collectives (the
profiler's, which include waiting for the other rank), collectives per layer, and sent bytes, counted operation by
operation by the tests' ``WireCounter``, as a multiple of the least that the layout has to send (``least_bytes``).

Then ``bucketed.py``, our reading of picotron's approach, trains on the same tensors. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bucketed import BATCHES, compare_approaches
from records import Figure, Measurement
from report import Report, add_json_option

from archon_core import parse_layout
from archon_testing.worlds import run_world

COUNTERS = Path(__file__).resolve().parents[2] / "tests/plan"
TOKENS, LENGTH = 2048, 128
FP32 = 4
DENSE = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}
EXPERTS = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
LAYOUTS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "d2": (DENSE, "d1"),
    "t2": (DENSE, "d1"),
    "c2": (DENSE, "d1"),
    "p2": (DENSE, "d1"),
    "d2e2": (EXPERTS, "d1"),
}
"""Layout -> its model, and the layout of one process."""
PIPELINE_MICRO_BATCHES = 8


def make_engine(layout: str, model: Mapping[str, Any]) -> Any:
    """An engine over all ranks of this world."""
    from archon_core import assemble
    from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
    from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions

    config = ArchonEngineConfig(
        model_config=dict(model),
        dtype="float32",
        gradient_checkpointing=False,
        mb_spec=MicroBatchSpec(n_mbs=PIPELINE_MICRO_BATCHES if "p" in layout else 1),
        optimizer=OptimizerConfig(),
        archon=ArchonOptions(enable_compile=False),
    )
    engine = assemble(config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=1, total_steps=None)
    engine.initialize()
    return engine


def measure(layout: str, model: Mapping[str, Any], rounds: int) -> Iterator[dict[str, Any]]:
    """On a rank: seconds of each step of the slower rank, then what one step exchanges."""
    import torch
    import torch.distributed as dist

    from archon_core.contracts.batch import Batch
    from archon_testing.losses import NegativeLogLikelihood

    ranks = parse_layout(f"archon:{layout}").world_size
    torch.set_num_threads(2 if ranks == 1 else 1)
    engine, loss = make_engine(layout, model), NegativeLogLikelihood()
    sequences = [torch.arange(LENGTH) * 7 % model["vocab_size"]] * (TOKENS // LENGTH)
    batch = Batch.from_sequences(sequences[: len(sequences) // engine.data_ranks.size])
    for number in range(rounds + 2):
        if ranks > 1:  # a world of one has no process group
            dist.barrier()
        started = time.perf_counter()
        engine.train_batch(batch, loss)
        seconds = torch.tensor(time.perf_counter() - started)
        if ranks > 1:
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
        if number > 1:
            yield {"seconds": float(seconds)}
    if ranks > 1:
        yield _exchanged(engine, batch, loss)
    engine.close()


def _exchanged(engine: Any, batch: Any, loss: Any) -> dict[str, Any]:
    """What one step sends, from the counter of archon-plan's tests, and the profiler's time in collectives."""
    import torch

    sys.path.insert(0, str(COUNTERS))
    from wire_counter import WireCounter

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        engine.train_batch(batch, loss)
    inside = sum(event.time_range.elapsed_us() for event in profiler.events() if event.name.startswith("gloo:"))
    with WireCounter() as counter:
        engine.train_batch(batch, loss)
    weights = {name: parameter.numel() for name, parameter in engine.parameters.items()}
    return {
        "milliseconds": inside / 1e3,
        "bytes": float(sum(one.bytes for one in counter.sent)),
        "operations": len(counter.sent),
        "weights": sum(weights.values()),
        "expert_weights": sum(n for name, n in weights.items() if ".experts." in name),
    }


def least_bytes(layout: str, model: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Bytes that a rank of two must send in one step with one micro-batch, or as many as a pipeline needs.

    - Sharded weights (``d``, and ``c``, which shards them too): gather every weight and scatter its gradient, once.
    - ``t``: per layer, gather and scatter the activations around attention and around the feed-forward block, forward
      and backward (Korthikanti et al., 2022), and the same once for embedding and head.
    - ``c``: all-to-all of queries, keys, values and of the output, forward and backward (Ulysses), beside the weights.
    - ``p``: the activations between the stages, or their gradients.
    - ``e``: every chosen row of a token to its expert and back, forward and backward, half of them to the other rank,
      beside the weights that are not experts'.
    """
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    half_of_activations = TOKENS * hidden * FP32 / 2
    weights = 2 * found["weights"] * FP32 / 2
    if layout == "d2":
        return weights
    if layout == "t2":
        return (8 * layers + 4) * half_of_activations
    if layout == "c2":
        heads = 2 * model["num_attention_heads"] + 2 * model["num_key_value_heads"]
        local = TOKENS / 2 * heads * model["head_dim"] * FP32
        return weights + 2 * layers * local / 2
    if layout == "p2":
        return TOKENS * hidden * FP32
    dense = 2 * (found["weights"] - found["expert_weights"]) * FP32 / 2
    rows = TOKENS / 2 * model["num_experts_per_tok"] / 2
    return dense + 4 * layers * rows * hidden * FP32


def run(layout: str, model: Mapping[str, Any], rounds: int) -> list[list[dict[str, Any]]]:
    """The values of every rank of a world."""
    n_ranks = parse_layout(f"archon:{layout}").world_size
    values: list[list[dict[str, Any]]] = [[] for _ in range(n_ranks)]
    run_world(
        measure, n_ranks, (layout, model, rounds), time_limit=120, on_value=lambda rank, one: values[rank].append(one)
    )
    return values


def compare_layouts(rounds: int, report: Report) -> None:
    """Measure every layout, each after half of the repetitions of one process and before the other half."""
    for layout, (model, alone) in LAYOUTS.items():
        half = max(rounds // 2, 1)
        before = run(alone, model, half)
        ranks = run(layout, model, rounds)
        single = [row["seconds"] for row in (*before[0], *run(alone, model, half)[0])]
        double = [row["seconds"] for row in ranks[0] if "seconds" in row]
        found = max((rows[-1] for rows in ranks), key=lambda row: row["bytes"])
        least = least_bytes(layout, model, found)
        ours, other = statistics.median(double), statistics.median(single)
        report.add(
            Measurement(
                f"{layout}: step",
                ours / other,
                "lower",
                Figure(1e3 * ours, "ms"),
                Figure(1e3 * other, "ms"),
                "one process, two threads",
                rounds,
                details={
                    "ms in collectives": round(found["milliseconds"], 1),
                    "collectives per layer": round(found["operations"] / model["num_hidden_layers"], 1),
                },
            )
        )
        report.add(
            Measurement(
                f"{layout}: bytes sent",
                found["bytes"] / least,
                "lower",
                Figure(found["bytes"] / 2**20, "MiB"),
                Figure(least / 2**20, "MiB"),
                "the least",
                1,
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("layouts", *BATCHES), help="leave out the rest")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    report = Report("distributed", options.json)
    if options.only in (None, "layouts"):
        compare_layouts(options.rounds, report)
    for name in BATCHES:
        if options.only in (None, name):
            compare_approaches(name, options.rounds, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
