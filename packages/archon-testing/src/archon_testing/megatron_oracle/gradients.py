"""Puts the parts of Megatron's gradients together, under Archon's names: by the weight map, which is linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_testing.held_shards import HeldShard
from archon_testing.megatron_oracle.architecture import LIMIT
from archon_testing.record import StepRecord

if TYPE_CHECKING:
    from archon_testing.megatron_oracle.step import MegatronStep


def reference_step(steps: Sequence[MegatronStep], weights: ResolvedMap) -> tuple[StepRecord, list[str]]:
    """The loss and the whole gradients of all Megatron ranks, by Archon's names; and what is wrong with them.

    Args:
        steps: of every rank.
        weights: weight map of the whole model.
    """
    whole, problems = _whole_tensors(steps, weights)
    losses = {step.loss for step in steps if step.loss is not None}
    if len(losses) > 1:
        problems.append(f"ranks of Megatron report different losses: {sorted(losses)}")
    norm = float(torch.stack([tensor.double().square().sum() for tensor in whole.values()]).sum().sqrt())
    gradients = {name: HeldShard.whole(tensor) for name, tensor in _by_our_names(whole, weights).items()}
    return StepRecord({"loss": losses.pop()}, norm, gradients, {}), problems


def _whole_tensors(steps: Sequence[MegatronStep], weights: ResolvedMap) -> tuple[dict[str, Tensor], list[str]]:
    """Hugging Face name -> gradient. Where several ranks have the same part, such as of a norm, they must agree."""
    whole = {name: torch.full(shape, torch.nan) for name, shape in weights.hf_shapes.items()}
    problems: dict[str, None] = {}
    for step in steps:
        for part in step.parts:
            place = part.place
            found = whole[place.name][place.box.slices]
            difference = (found - part.values).nan_to_num()  # NaN where no rank had it before
            if bool(difference.abs().max() > LIMIT * part.values.abs().max()):
                problems[f"ranks of Megatron have different gradients of {place.name}"] = None
            found.copy_(part.values)
    return whole, [*problems]


def _by_our_names(whole: Mapping[str, Tensor], weights: ResolvedMap) -> dict[str, Tensor]:
    """Archon's name -> gradient. What no rank of Megatron has is NaN, which no value equals."""
    ours = {}
    for name, shape in weights.shapes.items():
        if name in weights.ties:
            continue
        ours[name] = torch.full(shape, torch.nan)
        for link in weights.links_in(name, Box.whole(shape)):
            ours[name][link.our_box.slices] = link.as_ours(whole[link.hf][link.hf_box.slices])
    return ours
