"""Low-rank adapters of experts: ``A`` and ``B`` of every expert, stacked as the experts' weights are.

They are computed beside the frozen weights, not merged into them: the backward pass then needs no gradient of the size
of the experts, and in bfloat16 a small product is not rounded away beside a weight.

Legend: E experts, O outputs and I inputs of a projection, r rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from archon_core.contracts.module import InitialValue

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Projection -> its ``A`` [E, r, I] and ``B`` [E, O, r]."""


class LowRankExperts(nn.Module):
    """``scale * B A x`` beside the adapted projections of the experts of a block.

    Parameters are called ``gate_proj_A`` and ``gate_proj_B``, and so on. ``A`` starts as ``torch.nn.Linear`` does and
    ``B`` at zero, as in PEFT.

    Attributes:
        projections: the adapted ones.
        scale: factor of every product.
        enabled: false leaves the products out.
        whole: the gathered factors of all experts, used in place of the parameters during generation; ``None``
            otherwise.
    """

    def __init__(self, weights: Mapping[str, Tensor], rank: int, scale: float) -> None:
        super().__init__()
        self.projections = tuple(weights)
        self.scale = scale
        self.enabled = True
        self.whole: Factors | None = None
        self.initial_values: dict[str, InitialValue] = {}
        for name, weight in weights.items():
            E, O, I = weight.shape  # noqa: E741
            setattr(self, f"{name}_A", nn.Parameter(weight.new_empty(E, rank, I)))
            setattr(self, f"{name}_B", nn.Parameter(weight.new_empty(E, O, rank)))
            self.initial_values |= {f"{name}_A": "fan_in", f"{name}_B": "zeros"}

    @property
    def factors(self) -> Factors:
        """The factors to compute with; none while ``enabled`` is false."""
        if not self.enabled:
            return {}
        return self.whole or {
            name: (local_shard(getattr(self, f"{name}_A")), local_shard(getattr(self, f"{name}_B")))
            for name in self.projections
        }

    def gather(self) -> None:
        """Set ``whole`` from the parameters. Collective."""
        self.whole = {
            name: (full_tensor(getattr(self, f"{name}_A")), full_tensor(getattr(self, f"{name}_B")))
            for name in self.projections
        }


def low_rank_of(experts: nn.Module, projections: Collection[str], rank: int, scale: float) -> LowRankExperts:
    """New adapters of some projections of ``experts``, on the device and in the dtype of its weights."""
    return LowRankExperts({name: getattr(experts, name) for name in projections}, rank, scale)


def local_shard(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter of experts, as a plain tensor."""
    # grad_placements: dispatch has brought every token of these experts here, so the local gradient is the complete
    # gradient of the shard, not a partial sum over the mesh. Factors that are whole on every expert tensor rank are the
    # exception: the engine sums their gradients once per step (parallel.tensor.sum_replicated_gradients).
    if isinstance(parameter, DTensor):
        return parameter.to_local(grad_placements=parameter.placements)
    return parameter


def full_tensor(parameter: Tensor) -> Tensor:
    """The whole of a sharded parameter, detached. Collective."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
