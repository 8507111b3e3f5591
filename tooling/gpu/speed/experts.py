"""Training speed of a slice of a large model with experts: as many of its layers as fit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gpu.records import Check, Context, Outcome
from gpu.speed import archon, shapes
from gpu.speed.flops import peak, per_token
from gpu.speed.timing import free_memory

MFU_GOAL = 0.3


def checks(context: Context) -> Iterator[Check]:
    """One."""
    yield Check("training", partial(training, context))


def training(context: Context) -> Outcome:
    """Optimizer steps with default options. Only the experts that a token goes to count as operations."""
    config, workload = shapes.experts(context.device, free_memory(context.device))
    timing, how = archon.time_training(config, workload, context.device)
    rate = workload.tokens / timing.seconds
    most, source = peak(context.device)
    measured = {
        "tokens_per_s": rate,
        "mfu": rate * per_token(config, workload.length) / most,
        "step_s": timing.seconds,
        "first_step_s": timing.first,
        "peak_gib": timing.peak_bytes / 2**30,
        "layers": config["num_hidden_layers"],
    }
    message = f"{workload.sequences} sequences of {workload.length} tokens, {how}; peak {source}"
    return Outcome(measured, goals={"mfu": MFU_GOAL} if context.on_gpu else {}, message=message)
