"""Mixture of experts, as models describe it and as the engine deals with whoever computes it.

A model's package says what its blocks are (``MoESettings``) and where their weights come from; the package that is
installed for ``archon.moe`` builds, shards and runs them (``protocols.MoEBuilder``).

A block is called with x [T, hidden] and the ``PackedSequences`` of the forward pass, and gives [T, hidden]. Its
parameters have these names, which weight maps and parallel plans refer to (E experts, F their intermediate size, H
hidden size):

- ``router.weight`` [E, H], and ``router.choice_bias`` [E] with ``choice_bias``
- ``experts.gate_proj`` and ``experts.up_proj`` [E, F, H], ``experts.down_proj`` [E, H, F]
- ``shared.gate_proj.weight``, ``shared.up_proj.weight``, ``shared.down_proj.weight`` with a shared expert, and
  ``shared_gate.weight`` [1, H] where that has a gate

When blocks are compiled, a block stays eager as a whole, because its shapes depend on where tokens go; or only the
methods that its class names in ``eager_methods``, in which alone ``experts`` may be used.

No torch is imported at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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
