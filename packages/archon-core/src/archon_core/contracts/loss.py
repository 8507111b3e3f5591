"""Losses that cannot depend on the split of a batch: weights come from the batch, sums from micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from archon_core.contracts.batch import Batch
    from archon_core.contracts.packed import OutputName


Unit = Literal["token", "sequence", "constant"]
"""The divisor of a loss term: weighted tokens, weighted sequences, or a constant."""


@dataclass(frozen=True)
class OutputRequest:
    """A request for per-token outputs of a forward pass.

    Attributes:
        names: names of the outputs: ``logprobs`` and ``entropy`` of a language model, ``values`` of a critic.
        temperature: logits are divided by it first.
        where: name of a bool token field [T]: log-probabilities and entropies are needed only there, so the head leaves
            out all other positions, whose outputs are 0; ``None`` for every position that predicts a token.
    """

    names: tuple[OutputName, ...] = ("logprobs",)
    temperature: float = 1.0
    where: str | None = None


@dataclass(frozen=True)
class LossSums:
    """The result of a loss for one micro-batch: sums, not means.

    Attributes:
        terms: unit -> scalar tensor; the objective is the sum over units of term / global weight.
        metrics: name -> (unit, detached scalar tensor), reported as sum / global weight of that unit.
    """

    terms: Mapping[Unit, Tensor]
    metrics: Mapping[str, tuple[Unit, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyLossSpec(Spec):
    """A policy loss (``actor.policy_loss``). ``target`` names an ``archon_rl.losses.policy_term.PolicyLossFactory``.

    Attributes:
        source: paper that defines the loss, as ``arXiv:NUMBER``.
        sequence_level: whether the loss works with ``actor.importance_sampling_level: sequence``.
        decoupled: whether the loss works with ``actor.use_decoupled_loss``.
        options: options under ``actor`` that it reads and some other loss does not. Their values are reported as unused
            when another loss is chosen.
    """

    kind: ClassVar[str] = "policy_loss"
    hook: ClassVar[str] = "archon_policy_losses"

    source: str = ""
    sequence_level: bool = False
    decoupled: bool = True
    options: tuple[str, ...] = ()


@runtime_checkable
class Loss(Protocol):
    """A loss that cannot depend on the split of its batch into micro-batches or over ranks.

    ``weights`` depends on the batch only. The engine sums it over all micro-batches and ranks before any
    forward pass, and back-propagates each term of ``__call__`` divided by that global weight.
    """

    request: OutputRequest

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        """The batch's weight per unit that ``__call__`` uses; additive over any split of the batch."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        """Sums over the micro-batch; ``outputs`` are [T] tensors aligned to predictions."""
