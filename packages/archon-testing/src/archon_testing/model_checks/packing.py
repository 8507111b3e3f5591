"""Checks that packed sequences do not see each other: packed and alone they give the same values.

Models that declare the capability ``tree`` also give them if prefixes that sequences share are computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_engine.data.micro_batch import build_micro_batch
from archon_engine.data.tree_micro_batch import build_tree_micro_batch, tree_of
from archon_testing.model_checks.built import BuiltModel, distance, require

LENGTHS = (7, 1, 20, 3, 12)


def check_packing(model: BuiltModel) -> None:
    """Compare outputs and gradients of a pack with those of its single sequences."""
    ids = model.ids(sum(LENGTHS))
    upstream = torch.randn(sum(LENGTHS), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    name: OutputName = "values" if model.case.critic else "logprobs"
    together, of_pack = _outputs_and_gradients(model, name, [(ids, LENGTHS, upstream)])
    parts = zip(ids.split(LENGTHS), LENGTHS, upstream.split(LENGTHS), strict=True)
    alone, of_parts = _outputs_and_gradients(model, name, [(own, (n,), weight) for own, n, weight in parts])
    for number, (a, b) in enumerate(zip(together.split(LENGTHS), alone.split(LENGTHS), strict=True)):
        require(
            distance(a, b) <= model.limit,
            f"{name} of sequence {number} ({LENGTHS[number]} tokens) in a pack differ from those of the sequence alone "
            f"by {distance(a, b):.1e}: attention, positions or another module looks beyond its own sequence",
        )
    for weight, gradient in of_pack.items():
        error = distance(gradient, of_parts[weight])
        require(
            error <= model.limit, f"the gradient of {weight} differs by {error:.1e} between a pack and its sequences"
        )
    if "tree" in model.spec.capabilities:
        check_shared_prefixes(model, name)


def check_shared_prefixes(model: BuiltModel, name: OutputName) -> None:
    """Compare outputs and gradients of sequences whose shared prefixes are computed once with those without."""
    ids = model.ids(24)
    # Branches inside and at the end of another sequence, a copy, and a sequence that shares nothing.
    batch = Batch.from_sequences([ids, torch.cat((ids[:12], ids[3:9])), ids[:5], ids[8:11], ids[:5], ids[:20]])
    request, everything = OutputRequest((name,)), range(len(batch))
    apart = build_micro_batch(batch, everything, request)
    shared = build_tree_micro_batch(batch, everything, tree_of(batch), request)
    (expected, right), (found, gradients) = (_of_micro_batch(model, name, one) for one in (apart, shared))
    require(
        distance(found, expected) <= model.limit,
        f"{name} of sequences differ by {distance(found, expected):.1e} if shared prefixes are computed once: "
        "a module other than PackedAttention mixes tokens, or ignores packed.positions; remove the capability tree",
    )
    for weight, gradient in right.items():
        error = distance(gradients[weight], gradient)
        require(error <= model.limit, f"the gradient of {weight} differs by {error:.1e} if prefixes are computed once")


def _of_micro_batch(model: BuiltModel, name: OutputName, one: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.module.zero_grad()
    output = one.whole_outputs(model.module(one.input_ids, one.packed))[name]
    weights = torch.randn(len(output), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    (output * weights).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _outputs_and_gradients(
    model: BuiltModel, name: OutputName, packs: list[tuple[Tensor, tuple[int, ...], Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    model.module.zero_grad()
    outputs = []
    for ids, lengths, upstream in packs:
        # The last token of a sequence has no target; its successor differs between a pack and a single sequence.
        counts = torch.ones(len(ids), dtype=torch.float64)
        if name == "logprobs":
            counts[torch.tensor(lengths).cumsum(0) - 1] = 0
        output = model.run(ids, lengths, name)[name] * counts
        (output * upstream).sum().backward()
        outputs.append(output.detach())
    gradients = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}
    return torch.cat(outputs), gradients
