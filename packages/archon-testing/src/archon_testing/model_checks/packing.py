"""Checks that packed sequences do not see each other: packed and alone they give the same values."""

from __future__ import annotations

import torch
from torch import Tensor

from archon_testing.model_checks.built import BuiltModel, distance, require

LENGTHS = (7, 1, 20, 3, 12)


def check_packing(model: BuiltModel) -> None:
    """Compare outputs and gradients of a pack with those of its single sequences."""
    ids = model.ids(sum(LENGTHS))
    upstream = torch.randn(sum(LENGTHS), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    name = "values" if model.case.critic else "logprobs"
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


def _outputs_and_gradients(
    model: BuiltModel, name: str, packs: list[tuple[Tensor, tuple[int, ...], Tensor]]
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
