"""Contracts of mixture-of-experts blocks: how a model describes them, and who builds, shards and runs them.

A model package describes its blocks (``MoESettings``) and maps their weights. The package chosen by the engine option
``moe`` provides a ``MoEBuilder``, which builds them.

A block is called with x [T, H] and the ``PackedSequences`` of the forward pass, and returns [T, H]. Weight maps and
parallel plans refer to its parameters by these names (E experts, F their intermediate size, H hidden size):

- ``router.weight`` [E, H], ``router.bias`` [E] with ``router_bias``, and ``router.choice_bias`` [E] with
  ``choice_bias``
- ``experts.gate_proj`` and ``experts.up_proj`` [E, F, H], ``experts.down_proj`` [E, H, F]; with ``expert_bias`` also
  ``experts.gate_bias`` and ``experts.up_bias`` [E, F], ``experts.down_bias`` [E, H]
- ``shared.gate_proj.weight``, ``shared.up_proj.weight``, ``shared.down_proj.weight`` with a shared expert, and
  ``shared_gate.weight`` [1, H] if that expert has a gate

In compiled models a block stays eager as a whole, because its shapes depend on the routing. A class that declares
``eager_methods`` (``archon_core.contracts.module``) keeps only these methods eager; no other method may use
``experts``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn
    from torch.distributed.device_mesh import DeviceMesh

    from archon_core.contracts.decisions import Decision


@dataclass(frozen=True)
class MoESpec(Spec):
    """A mixture-of-experts block. ``target`` names a ``MoEBuilderFactory``.

    Attributes:
        check: target of ``check(config, *, role, explicit, has_experts) -> list[str]``: the problems with the options
            of the section ``role``, one sentence each. ``explicit`` are the options that the user has set;
            ``has_experts`` is ``None`` if the model is unknown. It must not import torch: dry runs call it.
    """

    kind: ClassVar[str] = "moe"
    hook: ClassVar[str] = "archon_moe"

    check: str = ""


class MoEBuilder(Protocol):
    """Builds, shards and maintains mixture-of-experts blocks, which this module's docstring specifies."""

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        """Build the block of a layer on the current default device, which may be the meta device.

        Args:
            settings: the settings of the model.
            layer: index of the layer in the whole model; the block reports under it.
        """

    def shard(self, block: nn.Module, place: ExpertParallel) -> None:
        """Turn the parameters of ``block.experts`` into DTensors over ``place.mesh``, on the meta device, in place, and
        make the block exchange tokens over ``place.group``.

        Raises:
            LayoutError: ep does not divide the number of experts, or etp their intermediate size.
        """

    def whole_experts(self, blocks: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Gather the experts of ``blocks`` for the length of the context.

        Forward passes inside, without gradients, need no other rank. Entering is collective; FSDP must have gathered
        the parameters before."""

    def update(self, blocks: Mapping[str, nn.Module], totals: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Update state that gradients do not train, such as choice biases, after an optimizer step.

        Args:
            blocks: layer index as text -> block, for the layers of this process.
            totals: layer index as text -> what its block has reported (``packed.Auxiliary``), summed over all tokens of
                the step; for all layers of the model.
        """

    def decisions(self, device: str, dtype: dtype, *, role: str) -> list[Decision]:
        """Decisions on ``device`` in ``dtype``: options that are overridden, and choices for options left open.

        Args:
            device: device of the blocks.
            dtype: dtype of their weights.
            role: section of the engine, part of the options' names.
        """

    def metrics(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, float]:
        """Metrics of a step to log, by names without prefix.

        Args:
            totals: as in ``update``.
        """

    def expert_load(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Sequence[int]]:
        """Layer index as text -> tokens of each expert in a step. A builder may leave this method out.

        Args:
            totals: as in ``update``.
        """


class MoEBuilderFactory(Protocol):
    """``target`` of a ``MoESpec``. ``options`` are those of the engine, including the fields that the plugin adds."""

    def __call__(self, options: Any) -> MoEBuilder: ...


@runtime_checkable
class AdaptableExperts(Protocol):
    """``experts`` of a block that take low-rank adapters (``archon_core.contracts.adapters``)."""

    def add_low_rank(self, projections: Collection[str], rank: int, scale: float) -> None:
        """Add ``scale * B A x`` of every expert to some of ``gate_proj``, ``up_proj`` and ``down_proj``, in place.

        The module ``lora`` holds the factors as parameters: ``gate_proj_A`` [E, rank, inputs], ``gate_proj_B`` [E,
        outputs, rank], and so on. ``MoEBuilder.shard`` shards them too. While ``lora.enabled`` is false, the experts
        compute without them.
        """


@dataclass(frozen=True)
class ClampedGate:
    """``(clip(up, -limit, limit) + 1) * g * sigmoid(alpha * g)`` with ``g = min(gate, limit)``: the product of both
    projections of an expert in gpt-oss (arXiv:2508.10925).

    Attributes:
        alpha: factor inside the sigmoid.
        limit: largest value of the gate, and largest absolute value of the up projection.
    """

    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True)
class MoESettings:
    """The settings of a model's mixture-of-experts blocks, equal in all layers.

    Attributes:
        hidden_size: H.
        intermediate_size: F of each expert.
        n_experts: E.
        top_k: experts per token.
        hidden_act: activation of experts, by its ``transformers`` name.
        score: function that turns router logits into scores.
        norm_topk_prob: whether to divide the chosen experts' scores by their sum.
        scaling: factor of the chosen experts' weights.
        n_groups: number of equal groups of neighbouring experts.
        top_k_groups: number of groups that a token may choose experts from: those with the largest sum of their two
            best scores.
        choice_bias: whether experts have a bias that is added to scores only for the choice (arXiv:2408.15664).
        shared_intermediate_size: intermediate size of an expert that every token passes; 0 for none.
        shared_gate: whether the output of the shared expert is multiplied by the sigmoid of a gate.
        expert_bias: whether the projections of routed experts have biases.
        router_bias: whether the router logits have a bias, which is trained.
        clamped_gate: what routed experts compute in place of ``hidden_act(gate) * up``; ``None`` for that product.
        router_dtype: ``fp32``, or ``None`` for the dtype of the activations. The engine option ``moe_router_dtype``
            overrides it.
    """

    hidden_size: int
    intermediate_size: int
    n_experts: int
    top_k: int
    hidden_act: str = "silu"
    score: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = False
    scaling: float = 1.0
    n_groups: int = 1
    top_k_groups: int = 1
    choice_bias: bool = False
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    clamped_gate: ClampedGate | None = None
    router_dtype: Literal["fp32"] | None = "fp32"


@dataclass(frozen=True)
class ExpertParallel:
    """This rank's place among the ranks that share the experts of a block.

    All these ranks hold different tokens. Expert e is on the ``etp`` ranks at coordinate ``e // (E / ep)`` along
    ``ep``, each with an equal part of its intermediate size.

    Attributes:
        mesh: two axes, ``ep`` and ``etp``.
        group: process group of the mesh's ranks in row-major order, ``etp`` innermost.
    """

    mesh: DeviceMesh
    group: Any

    @property
    def ep(self) -> int:
        """Number of ranks over which experts are distributed."""
        return self.mesh.size(0)

    @property
    def etp(self) -> int:
        """Number of ranks over which each expert's intermediate size is sharded."""
        return self.mesh.size(1)
