"""Records the routed experts of rollout tokens, pass by pass, for routing replay in training.

Legend: T tokens of a forward pass, L layers of the whole model, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from archon_core.contracts.packed import PackedSequences
from archon_core.contracts.rollout import Completion
from archon_core.errors import ConfigError
from archon_core.ranks.ranks import Ranks

NO_EXPERT = -1
"""Fills layers without experts, and layers on other pipeline stages."""


class RoutingRecorder:
    """Collects the routed experts that the layers report during one forward pass.

    Args:
        n_layers: L.
    """

    def __init__(self, n_layers: int) -> None:
        self._n_layers = n_layers
        self._chosen: dict[int, Tensor] = {}

    def watch(self, packed: PackedSequences) -> PackedSequences:
        """``packed`` with this recorder attached."""
        self._chosen = {}
        return replace(packed, record_experts=self._chosen.__setitem__)

    def taken(self) -> Tensor | None:
        """The experts of the last pass, int16 [T, L, K]; ``None`` if no layer on this rank has experts."""
        if not self._chosen:
            return None
        first = next(iter(self._chosen.values()))
        whole = first.new_full((first.shape[0], self._n_layers, first.shape[1]), NO_EXPERT, dtype=torch.int16)
        for layer, chosen in self._chosen.items():
            whole[:, layer] = chosen
        return whole


def join_stages(completions: Sequence[Sequence[Completion]], pipeline: Ranks) -> list[list[Completion]]:
    """Completions with the routed experts of all pipeline stages; each stage contributes its layers. Collective.

    Raises:
        ConfigError: no stage has layers with experts.
    """
    own = [[completion.routed_experts for completion in samples] for samples in completions]
    of_stages = pipeline.gather(own)
    joined = []
    for place, samples in enumerate(completions):
        joined.append([])
        for number, completion in enumerate(samples):
            known = [stage[place][number] for stage in of_stages if stage[place][number] is not None]
            if completion.token_ids and not known:
                raise ConfigError(
                    "rollout.return_routed_experts: found true, but the model has no experts; set it to false"
                )
            whole = torch.stack(known).amax(0) if known else None
            joined[-1].append(replace(completion, routed_experts=whole))
    return joined
