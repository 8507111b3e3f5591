"""Mixture of experts: how a model describes its blocks, and who builds, shards and runs them.

A model's package says what its blocks are (``MoESettings``) and where their weights come from; the package that is
installed for ``archon.moe`` provides a ``MoEBuilder``.

A block is called with x [T, hidden] and the ``PackedSequences`` of the forward pass, and returns [T, hidden]. Its
parameters have these names, which weight maps and parallel plans refer to (E experts, F their intermediate size, H
hidden size):

- ``router.weight`` [E, H], and ``router.choice_bias`` [E] with ``choice_bias``
- ``experts.gate_proj`` and ``experts.up_proj`` [E, F, H], ``experts.down_proj`` [E, H, F]
- ``shared.gate_proj.weight``, ``shared.up_proj.weight``, ``shared.down_proj.weight`` with a shared expert, and
  ``shared_gate.weight`` [1, H] where that has a gate

A block may declare ``parallel`` and ``eager_methods``; see ``archon_core.contracts.module``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn
    from torch.distributed.device_mesh import DeviceMesh

    from archon_core.contracts.decisions import Decision


@dataclass(frozen=True)
class MoESpec(Spec):
    """A mixture-of-experts block. ``target`` names a ``MoEBuilderFactory``.

    Attributes:
        check: target of ``check(config, *, role, explicit, has_experts) -> list[str]``: what the options of the section
            ``role`` ask for and cannot have, one sentence each; ``has_experts`` is ``None`` where the model is not
            known. It must not import torch: dry runs call it.
    """

    kind: ClassVar[str] = "moe"
    hook: ClassVar[str] = "archon_moe"

    check: str = ""


class MoEBuilder(Protocol):
    """Builds, shards and looks after mixture-of-experts blocks; see this module for what a block is."""

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        """The block of a layer, which may be on the meta device.

        Args:
            settings: the model's.
            layer: its number in the whole model, under which it reports.
        """

    def shard(self, block: nn.Module, place: ExpertParallel) -> None:
        """Make the parameters of ``block.experts`` DTensors over ``place.mesh``, on the meta device, in place, and have
        the block exchange tokens with the other ranks.

        Raises:
            LayoutError: ep does not divide the experts, or etp their intermediate size.
        """

    def whole_experts(self, blocks: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Gather the experts of ``blocks`` for the length of the context: forward passes inside, without gradients,
        need no other rank. Entering is collective; parameters are not sharded by FSDP inside."""

    def update(self, blocks: Mapping[str, nn.Module], totals: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Change what is not trained by gradients, after an optimizer step.

        Args:
            blocks: the layer's number, as text -> block, of those that are here.
            totals: the same for all of the model -> what blocks have reported (``packed.Auxiliary``), summed over all
                tokens of the step.
        """

    def decisions(self, device: str, dtype: dtype, *, role: str) -> list[Decision]:
        """What blocks do on ``device`` in ``dtype`` other than asked, and how they choose where nothing was asked.

        Args:
            role: the name of the engine's section, for the options' names.
        """

    def metrics(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, float]:
        """Names without prefix and values of what is worth logging."""


class MoEBuilderFactory(Protocol):
    """``target`` of a ``MoESpec``. ``options`` are those of the engine, the plugin's own among them."""

    def __call__(self, options: Any) -> MoEBuilder: ...


@dataclass(frozen=True)
class MoESettings:
    """The mixture-of-experts blocks of a model, which are all alike.

    Attributes:
        hidden_size: H.
        intermediate_size: F, of each expert.
        n_experts: E.
        top_k: experts per token.
        hidden_act: activation of experts, by its ``transformers`` name.
        score: what makes scores of the router's logits.
        norm_topk_prob: divide the chosen experts' scores by their sum.
        scaling: multiply them by this.
        n_groups: equal groups of neighbouring experts.
        top_k_groups: only experts of this many groups may be chosen: those with the largest sum of their two best.
        choice_bias: a bias per expert that is added to scores for choosing alone (arXiv:2408.15664).
        shared_intermediate_size: of an expert that every token passes; 0 for none.
        shared_gate: whether its output is multiplied by the sigmoid of a gate.
        router_dtype: ``fp32``, or ``None`` for the type of the activations; an engine's option (``moe_router_dtype``)
            decides, whatever the model says.
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
    router_dtype: Literal["fp32"] | None = "fp32"


@dataclass(frozen=True)
class ExpertParallel:
    """This rank's place among those that share the experts of a block.

    All of them hold different tokens. Expert e lies on the ``etp`` ranks of place ``e // (E / ep)`` along ``ep``, each
    with an equal part of its intermediate size.

    Attributes:
        mesh: two axes, ``ep`` and ``etp``.
        group: its ranks in row-major order, ``etp`` innermost.
    """

    mesh: DeviceMesh
    group: Any

    @property
    def ep(self) -> int:
        """Ranks over which experts are dealt."""
        return self.mesh.size(0)

    @property
    def etp(self) -> int:
        """Ranks over which each expert's intermediate size is cut."""
        return self.mesh.size(1)
