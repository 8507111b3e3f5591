"""How transformers stores the weights that it has in memory, found out by converting tensors of numbered elements.

A stored tensor holds a slice of one in memory: all of it, or one expert of a stack, for example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from archon_core.errors import ModelError
from archon_core.models.box import Box, Shape
from archon_models_hf.names import layer_of, pattern_of
from archon_models_hf.transformers_model import build_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from archon_models_hf.arguments import HfArguments


@dataclass(frozen=True)
class StoredSlice:
    """A stored tensor, and the slice of a tensor in memory that it holds.

    Attributes:
        name: pattern of its name, with ``{layer}`` for the layer's number.
        shape: of the stored tensor.
        box: the slice.
    """

    name: str
    shape: Shape
    box: Box


Forms = dict[str, tuple[StoredSlice, ...]]
"""Pattern of our name -> the stored tensors that it is made of."""


def stored_forms(arguments: HfArguments) -> tuple[Forms, Forms, str]:
    """How a model is stored, and how it is in memory, but for its head; and the name of the head's stored weight.

    Raises:
        ModelError: transformers stores it in a form that is no arrangement of boxes.
    """
    names = arguments.facts.names
    with torch.device("meta"):
        lm = build_transformers(arguments.config, critic=arguments.critic)
    in_memory = {name: w for name, w in lm.state_dict().items() if name.partition(".")[0] == names.body}
    saved: Forms = {}
    kept: Forms = {}
    unchanged = set(_stored(lm, in_memory))
    for name, weight in in_memory.items():
        our_name = names.ours(name)
        ours, number = pattern_of(our_name), layer_of(our_name)
        if ours in kept:
            continue
        shape = tuple(weight.shape)
        itself = StoredSlice(_with_layer(name, number, names.layers), shape, Box.whole(shape))
        kept[ours] = (itself,)
        if name in unchanged:
            saved[ours] = (itself,)
        else:
            found = _slices_of(lm, name, shape)
            saved[ours] = tuple(replace(part, name=_with_layer(part.name, number, names.layers)) for part in found)
    head = f"{names.head}.weight"
    [stored_head] = _stored(lm, {head: torch.empty(1, 1)})
    return saved, kept, stored_head


def _slices_of(lm: PreTrainedModel, name: str, shape: Shape) -> list[StoredSlice]:
    """Follow the elements of one tensor through the conversion. Its last dim, which is never cut, is one wide here."""
    tracked = shape if len(shape) < 3 else (*shape[:-1], 1)
    elements = torch.arange(Box.whole(tracked).numel, device="cpu").view(tracked)
    found = []
    for stored, part in _stored(lm, {name: elements}).items():
        box = _box_of(part, tracked)
        if box is None:
            raise ModelError(
                f"{type(lm).__name__}: transformers stores {name} {shape} in another form ({stored}, of "
                f"{tuple(part.shape)}) that weight rules cannot express; use a model package that serves it"
            )
        if len(shape) >= 3:
            box = Box(box.start, (*box.shape[:-1], shape[-1]))
        extent = (*part.shape[:-1], shape[-1]) if len(shape) >= 3 else tuple(part.shape)
        found.append(StoredSlice(stored, extent, box))
    return found


def _box_of(part: Tensor, whole: Shape) -> Box | None:
    """Where ``part``, of numbered elements, lies in ``whole``; ``None`` when it is no box of it."""
    if not part.numel():
        return None
    first, extent = int(part.flatten()[0]), tuple(part.shape)
    corner = []
    for size in reversed(whole):
        corner.append(first % size)
        first //= size
    shape = (*(1,) * (len(whole) - len(extent)), *extent)
    if len(shape) != len(whole):
        return None
    box = Box(tuple(reversed(corner)), shape)
    if any(stop > size for stop, size in zip(box.stop, whole, strict=True)):
        return None
    expected = torch.arange(Box.whole(whole).numel, device="cpu").view(whole)[box.slices]
    return box if torch.equal(expected.reshape(extent), part) else None


def _stored(lm: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(lm, dict(weights))


def _with_layer(name: str, number: str | None, layers: str) -> str:
    return name if number is None else name.replace(f"{layers}.{number}.", f"{layers}.{{layer}}.", 1)
