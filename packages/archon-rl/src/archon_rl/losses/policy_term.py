"""``PolicyTerm``: what all policy losses share. A loss adds its formula (``token_losses``) and nothing else.

With pi the policy that is trained, pi_prox the policy that the ratio compares it with and pi_behave the policy that
sampled, a policy loss is a function of the log-ratio log pi - log pi_prox and of the advantage, per token. This module
provides

- pi_prox: pi_behave in the plain loss. In the decoupled loss it is the trainer's policy at the start of the step, and
  the loss is multiplied by a weight (``losses.behaviour``);
- the level of the ratio: each token's, or one per sequence (GSPO);
- tokens that leave the loss: without advantage, rejected by the behaviour weight, or left out by a mask over the whole
  batch (``losses.whole_batch``). They still count in the loss's denominator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.behaviour import BehaviourWeight, Level, mean_over_sequence
from archon_rl.losses.kl import kl_estimate
from archon_rl.losses.objective import TermValues, TokenTerm
from archon_rl.losses.proximal import PROX_FRACTION, PROX_LOGPROBS, approximation_errors, interpolated
from archon_rl.losses.whole_batch import WholeBatchMask

ADVANTAGES = "advantages"
"""Token field [T]."""
LOGPROBS = "logprobs"
"""Token field [T]: log-probabilities of the sampled tokens under the behaviour policy."""

ProximalSource = Literal["batch", "interpolated", "current"]


@dataclass(frozen=True)
class PolicyInputs:
    """What a policy loss computes from, all [T].

    Attributes:
        log_ratio: log pi - log pi_prox of the token or its sequence, with gradient; 0, without gradient, for tokens
            that leave the loss.
        logprobs: log pi, with gradient.
        advantages: of the token, or the mean of its sequence at level ``sequence``.
        sampled: log pi_behave.
        batch: the micro-batch.
    """

    log_ratio: Tensor
    logprobs: Tensor
    advantages: Tensor
    sampled: Tensor
    batch: Batch

    def by_sign(self, positive: float, other: float) -> Tensor:
        """[T]: ``positive`` where the advantage is positive, ``other`` elsewhere, in the log-ratio's dtype."""
        return torch.where(self.advantages > 0, self.log_ratio.new_tensor(positive), self.log_ratio.new_tensor(other))


@dataclass(frozen=True, kw_only=True)
class PolicyTerm(ABC):
    """A policy loss; implements ``losses.objective.TokenTerm``.

    Attributes:
        behaviour: weight of the decoupled loss; ``None`` for the plain loss.
        proximal: log pi_prox of the decoupled loss: a field of the batch (``batch``), an interpolation between
            log pi_behave and the current log pi (``interpolated``), or the current log pi itself (``current``).
        report_approximations: report how far approximations of log pi_prox are from the batch's.
        level: ``sequence`` replaces the ratio by the geometric mean over the sequence's trained tokens, and the
            advantage by their mean (GSPO, arXiv:2507.18071).
        masks: bool token fields; tokens at which one is false leave the loss.
    """

    needs_advantage: ClassVar[bool] = True
    """Whether tokens with advantage 0 leave the loss; false for losses that also penalise."""

    behaviour: BehaviourWeight | None = None
    proximal: ProximalSource = "batch"
    report_approximations: bool = False
    level: Level = "token"
    masks: tuple[str, ...] = ()
    name: str = "policy_loss"
    outputs: tuple[OutputName, ...] = ("logprobs",)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({ADVANTAGES, LOGPROBS, *self.masks, *self._proximal_fields()})

    def _proximal_fields(self) -> set[str]:
        if self.behaviour is None or self.proximal == "current":
            return set()
        if self.proximal == "interpolated":
            return {PROX_FRACTION}
        return {PROX_LOGPROBS, PROX_FRACTION} if self.report_approximations else {PROX_LOGPROBS}

    @abstractmethod
    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss per token, before the behaviour weight; and detached metrics. All [T]."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        logprobs, fields = outputs["logprobs"], micro_batch.token_fields
        advantages, sampled = fields[ADVANTAGES], fields[LOGPROBS]
        proximal, metrics = self._proximal_logprobs(logprobs.detach(), fields)

        log_ratio = logprobs - proximal
        if self.level == "sequence":
            log_ratio = mean_over_sequence(log_ratio, micro_batch)
            advantages = mean_over_sequence(advantages, micro_batch)
        metrics |= {
            "ratio": log_ratio.detach().exp(),
            # KL(pi_prox || pi), in this order: the samples come from the proximal policy.
            "approx_kl": kl_estimate(proximal, logprobs.detach(), "k3"),
        }
        left_out = advantages == 0 if self.needs_advantage else torch.zeros_like(advantages, dtype=torch.bool)
        for mask in self.masks:
            metrics[f"{mask}_fraction"] = fields[mask].to(log_ratio.dtype)
            left_out = left_out | ~fields[mask]
        weight = None
        if self.behaviour is not None:
            weight, weight_metrics = self.behaviour(proximal, sampled, micro_batch)
            metrics |= weight_metrics
            left_out = left_out | (weight == 0)
        # A token that leaves the loss must not pass through exp: where its ratio overflows, the zero gradient would
        # become 0 * inf = NaN. The same holds for a weight that is infinite.
        kept_ratio = torch.where(left_out, 0, log_ratio)
        losses, own = self.token_losses(PolicyInputs(kept_ratio, logprobs, advantages, sampled, micro_batch))
        if weight is not None:
            losses = losses * torch.where(left_out, 0, weight)
        return TermValues(torch.where(left_out, 0, losses), metrics | own)

    def _proximal_logprobs(self, current: Tensor, fields: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        sampled = fields[LOGPROBS]
        if self.behaviour is None:
            return sampled, {}
        if self.proximal == "current":
            return current, {}
        if self.proximal == "interpolated":
            return interpolated(sampled, current, fields[PROX_FRACTION]), {}
        proximal = fields[PROX_LOGPROBS]
        if not self.report_approximations:
            return proximal, {}
        return proximal, approximation_errors(proximal, sampled, current, fields[PROX_FRACTION])


@dataclass(frozen=True)
class PolicyLoss:
    """A term with the masks over whole mini-batches that it reads.

    Attributes:
        term: the loss.
        masks: computed before each update; see ``losses.whole_batch``.
    """

    term: TokenTerm
    masks: tuple[WholeBatchMask, ...] = ()


class PolicyLossFactory(Protocol):
    """The ``target`` of a ``PolicyLossSpec``."""

    def __call__(self, options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
        """The loss.

        Args:
            options: the ``actor`` section.
            shared: values for the fields of ``PolicyTerm``.
        """
