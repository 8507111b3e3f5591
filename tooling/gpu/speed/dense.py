"""Training speed of a dense model, beside transformers and a plain block in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gpu.records import Check, Context, Outcome
from gpu.speed import archon, rival, shapes
from gpu.speed.block import time_block
from gpu.speed.flops import peak, per_token
from gpu.speed.timing import free_memory

MFU_GOAL = 0.5
RATIO_GOAL = 1.15

Found = dict[str, float]
"""Tokens per second, for the checks that compare with them."""


def checks(context: Context) -> Iterator[Check]:
    """Ours, transformers, the ceiling, and ours without the compiler."""
    found: Found = {}
    yield Check("training", partial(training, context, found))
    yield Check("transformers", partial(transformers, context, found))
    yield Check("plain-block", partial(plain_block, context))
    yield Check("training-eager", partial(training, context, {}, compiled=False))


def training(context: Context, found: Found, *, compiled: bool = True) -> Outcome:
    """Optimizer steps of the engine with default options, or without compilation."""
    config, workload = shapes.dense(context.device)
    timing, how = archon.time_training(config, workload, context.device, compiled=compiled)
    found["archon"] = workload.tokens / timing.seconds
    most, source = peak(context.device)
    measured = {
        "tokens_per_s": found["archon"],
        "mfu": found["archon"] * per_token(config, workload.length) / most,
        "step_s": timing.seconds,
        "first_step_s": timing.first,
        "peak_gib": timing.peak_bytes / 2**30,
    }
    message = f"{workload.sequences} sequences of {workload.length} tokens, {how}; peak {source}"
    return Outcome(measured, goals={"mfu": MFU_GOAL} if context.on_gpu and compiled else {}, message=message)


def plain_block(context: Context) -> Outcome:
    """One layer alone, forward and backward: the share of the peak that such a layer can reach here."""
    config, workload = shapes.dense(context.device)
    free_memory(context.device)
    timing = time_block(config, workload, context.device)
    one_layer = {**config, "num_hidden_layers": 1}
    without_head = per_token(one_layer, workload.length) - 6 * config["hidden_size"] * config["vocab_size"]
    share = workload.tokens * without_head / timing.seconds / peak(context.device)[0]
    return Outcome({"mfu": share, "step_s": timing.seconds, "first_step_s": timing.first}, message="a ceiling for mfu")


def transformers(context: Context, found: Found) -> Outcome:
    """Optimizer steps of transformers; the ratio is ours to theirs."""
    config, workload = shapes.dense(context.device)
    timing, how = rival.time_training(config, workload, context.device)
    rate = workload.tokens / timing.seconds
    measured = {
        "tokens_per_s": rate,
        "mfu": rate * per_token(config, workload.length) / peak(context.device)[0],
        "first_step_s": timing.first,
        "peak_gib": timing.peak_bytes / 2**30,
    }
    if "archon" in found:
        measured["archon_ratio"] = found["archon"] / rate
    goals = {"archon_ratio": RATIO_GOAL} if context.on_gpu else {}
    return Outcome(measured, goals=goals, message=f"weights and optimizer in {archon.DTYPE[context.device]}, {how}")
