"""The engine on the device against the reference: loss, gradient norm and every gradient, over two optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gpu.numerics.models import MODELS, ModelName, build
from gpu.numerics.observing import BF16_BOUNDS, FP32_BOUNDS, batches_of, observe, outcome, with_routing
from gpu.numerics.oracle import reference
from gpu.records import Check, Context, Outcome

REPLAYED = "tokens go to the reference's experts, since bf16 changes which of two equal ones a router takes"


def checks(context: Context) -> Iterator[Check]:
    """Every model in fp32 and in bf16; shared prefixes, computed once."""
    for name in MODELS:
        yield Check(f"{name}-fp32", partial(fp32, context, name))
    for name in MODELS:
        yield Check(f"{name}-bf16", partial(bf16, context, name))
    for dtype in ("float32", "bfloat16"):
        yield Check(f"qwen3-tree-{dtype}", partial(tree, context, dtype))


def fp32(context: Context, name: ModelName) -> Outcome:
    """Eager, without recomputation."""
    expected = reference(name, context)
    engine = build(name, context, path=expected.checkpoint)
    found = observe(engine, name, batches_of(name, context, torch.float32))
    engine.close()
    return outcome(found, expected.training, FP32_BOUNDS)


def tree(context: Context, dtype: str, name: ModelName = "qwen3") -> Outcome:
    """Shared prefixes computed once, against every sequence computed apart."""
    expected = reference(name, context)
    assert expected.prefixes is not None, f"{name} has a reference on such batches"
    engine = build(name, context, path=expected.checkpoint, dtype=dtype, shares_prefixes=True)
    found = observe(engine, name, batches_of(name, context, torch.float32, shares_prefixes=True))
    engine.close()
    return outcome(found, expected.prefixes, FP32_BOUNDS if dtype == "float32" else BF16_BOUNDS)


def bf16(context: Context, name: ModelName, **options: object) -> Outcome:
    """Computation in bf16 with fp32 master weights, as it is by default on a GPU."""
    expected = reference(name, context)
    batches = batches_of(name, context, torch.float32)
    replays = name == "qwen3_moe"
    if replays:
        options = {**options, "moe_routing_replay": True}
        batches = [with_routing(batch, routing) for batch, routing in zip(batches, expected.routing, strict=True)]
    engine = build(name, context, path=expected.checkpoint, dtype="bfloat16", **options)
    found = observe(engine, name, batches)
    engine.close()
    return outcome(found, expected.training, BF16_BOUNDS, REPLAYED if replays else "")
