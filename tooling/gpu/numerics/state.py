"""What an engine keeps between steps: moving it to the host and back, and both forms of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from archon_testing.record import Record
from gpu.numerics.comparing import relative_error, worst
from gpu.numerics.models import ModelName, build
from gpu.numerics.observing import STEP_BOUNDS, batches_of, last_steps, observe, outcome
from gpu.numerics.oracle import reference
from gpu.records import Check, Context, Outcome

LEFT_ON_DEVICE = 0.1
"""Share of weights and optimizer state that may stay on the device: what other engines of this process keep is
subtracted, but not every cache."""

TYPES = ("float32", "bfloat16")
"""Whole tensors on one GPU, and FSDP2's on a mesh of one rank."""


def checks(context: Context) -> Iterator[Check]:
    """In both forms in which a module holds its weights."""
    for dtype in TYPES:
        yield Check(f"offload-onload-{dtype}", partial(offload, context, dtype))
        yield Check(f"dcp-{dtype}", partial(round_trip_dcp, context, dtype))
        yield Check(f"hf-{dtype}", partial(round_trip_hf, context, dtype))
    yield Check("staged-copies", partial(staged, context))


def offload(context: Context, dtype: str, name: ModelName = "qwen3_moe") -> Outcome:
    """A step, to the host and back, and another step, against two steps in a row; memory that stays on the device."""
    batches = batches_of(name, context, torch.float32)
    expected = _two_steps(context, dtype, name)
    before = _allocated(context)
    engine = build(name, context, path=reference(name, context).checkpoint, dtype=dtype)
    observe(engine, name, batches[:1], 0, gradients=False)
    held = _bytes_held(engine)
    engine.offload()
    left = _allocated(context) - before
    engine.onload()
    found = observe(engine, name, batches[1:], 1)
    engine.close()
    result = outcome(found, last_steps(expected, 1), STEP_BOUNDS)
    if not context.on_gpu:
        return result
    measured = {**result.measured, "left on the device": max(left, 0) / held}
    return Outcome(measured, {**result.bounds, "left on the device": LEFT_ON_DEVICE}, message=result.message)


def round_trip_dcp(context: Context, dtype: str, name: ModelName = "qwen3_moe") -> Outcome:
    """A step, saved, loaded by a new engine, and another step, against two steps in a row."""
    batches = batches_of(name, context, torch.float32)
    expected = _two_steps(context, dtype, name)
    engine = build(name, context, path=reference(name, context).checkpoint, dtype=dtype)
    observe(engine, name, batches[:1], 0, gradients=False)
    folder = context.work / f"dcp-{dtype}"
    engine.save(folder, "dcp")
    engine.close()
    fresh = build(name, context, dtype=dtype)
    fresh.load(folder, "dcp")
    found = observe(fresh, name, batches[1:], 1)
    fresh.close()
    return outcome(found, last_steps(expected, 1), STEP_BOUNDS)


def round_trip_hf(context: Context, dtype: str, name: ModelName = "qwen3_moe") -> Outcome:
    """Saved weights, loaded by a new engine, are the same numbers in the type that is saved."""
    engine = build(name, context, path=reference(name, context).checkpoint, dtype=dtype)
    folder = context.work / f"hf-{dtype}"
    engine.save(folder, "hf")
    fresh = build(name, context, path=folder, dtype=dtype)
    kind = getattr(torch, dtype)
    differing = sum(
        not torch.equal(_whole(own).to(kind), _whole(fresh.parameters[n]).to(kind))
        for n, own in engine.parameters.items()
    )
    engine.close()
    fresh.close()
    return Outcome({"tensors that differ": differing}, {"tensors that differ": 0})


def staged(context: Context, name: ModelName = "qwen3") -> Outcome:
    """Host copies of the training state are the weights as they were, though training went on."""
    engine = build(name, context, path=reference(name, context).checkpoint, dtype="bfloat16")
    batches = batches_of(name, context, torch.float32)
    observe(engine, name, batches[:1], 0, gradients=False)
    then = {n: _whole(parameter).cpu().clone() for n, parameter in engine.parameters.items()}
    state = engine.stage()
    observe(engine, name, batches[1:], 1, gradients=False)
    copies = {part.name.removeprefix("weights."): part.values() for part in state.parts}
    errors = [relative_error(copies[n].reshape(weight.shape), weight) for n, weight in then.items()]
    engine.close()
    return Outcome({"weights": worst(errors)}, {"weights": 0.0})


def _two_steps(context: Context, dtype: str, name: ModelName) -> Record:
    """Of one engine, without a break."""
    engine = build(name, context, path=reference(name, context).checkpoint, dtype=dtype)
    record = observe(engine, name, batches_of(name, context, torch.float32))
    engine.close()
    return record


def _whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _bytes_held(engine: Any) -> int:
    """Weights and two moments in the type of the weights."""
    return 3 * sum(parameter.numel() * parameter.element_size() for parameter in engine.parameters.values())


def _allocated(context: Context) -> int:
    if not context.on_gpu:
        return 0
    import gc

    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()
