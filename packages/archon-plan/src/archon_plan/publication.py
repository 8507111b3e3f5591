"""Bytes of a publication: whole weights, gathered on the first rank and sent on to servers.

Ranks send their parts of every weight to the first rank in the dtype of the published tensors
(``archon_engine.checkpoint.gathering``), which sends whole tensors to each group of servers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from archon_plan.setting import Setting
from archon_plan.shards import shards_of
from archon_plan.units import stage_weights


@dataclass(frozen=True)
class Publication:
    """What one publication of weights moves.

    Attributes:
        whole: bytes of all published tensors together.
        gathered: bytes that the other ranks of the trainer send to the first one, all together.
        sent: bytes that the first rank sends to servers.
    """

    whole: int
    gathered: int
    sent: int


def publication_bytes(setting: Setting, *, groups: int = 1, number_bytes: int | None = None) -> Publication:
    """What one publication of the weights of ``setting`` moves.

    Args:
        setting: of the trainer.
        groups: groups of servers that each receive all weights.
        number_bytes: of a published number; ``None`` for those of computation.
    """
    size = setting.types.compute if number_bytes is None else number_bytes
    anatomy, dims = setting.anatomy, setting.dims
    whole = anatomy.n_parameters
    own = 0
    for stage in setting.held_by(0):
        before, after = stage_weights(anatomy, stage)
        if anatomy.tied and stage.has_head:
            after = anatomy.last  # a copy of the embedding is not published
        own += shards_of(before, dims).elements + shards_of(after, dims).elements
        for kind, count in Counter(anatomy.kind_of[number] for number in stage.layers).items():
            own += count * shards_of(anatomy.kinds[kind].weights, dims).elements
    return Publication(size * whole, size * (whole - own), size * whole * groups)
