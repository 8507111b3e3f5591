"""Losses over pairs of sequences: direct preference optimisation, and the Bradley-Terry loss of a reward model.

A batch holds the sequences of a pair side by side, the chosen one first, and its granularity keeps them together. The
loss of a batch is the mean over all pairs of all ranks. Sums over a sequence are in float64: a difference of two sums
over thousands of tokens is close to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import LossSums, OutputRequest, Unit
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK, trained_tokens
from archon_rl.losses.masking import mask_values

PAIRS = "pairs"
"""Sequence field, int64 [S]: which pair a sequence belongs to."""

REFERENCE = "reference_logprobs"
"""Sequence field, float64 [S]: sum of the reference model's log-probabilities over the trained tokens."""

UNIT: Unit = "sequence"
"""The unit of weights and metrics: here it counts pairs."""

TIE = 1e-6
"""Larger differences count for a pair's accuracy. Smaller ones may be rounding, which layouts do differently."""


def sigmoid_loss(difference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta h): DPO (arXiv:2305.18290, eq. 7)."""
    return -logsigmoid(beta * difference)


def ipo_loss(difference: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2: IPO (arXiv:2310.12036, eq. 17), whose tau is beta here."""
    return (difference - 1 / (2 * beta)).square()


PAIR_LOSSES: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {"sigmoid": sigmoid_loss, "ipo": ipo_loss}
)
"""``actor.loss_type`` -> the loss of a pair, a function of h and beta. With y the chosen and y' the rejected answer,
h = log pi(y) - log pi_ref(y) - (log pi(y') - log pi_ref(y'))."""


@dataclass(frozen=True)
class PreferenceLoss:
    """Direct preference optimisation; implements ``contracts.loss.Loss``.

    Attributes:
        pair_loss: name of the loss of a pair, in ``PAIR_LOSSES``.
        beta: strength of the tie to the reference.
        average: divide the log-probability of an answer by its number of trained tokens.
        temperature: logits are divided by it.
    """

    pair_loss: str = "sigmoid"
    beta: float = 0.1
    average: bool = False
    temperature: float = 1.0

    @property
    def request(self) -> OutputRequest:
        return OutputRequest(("logprobs",), self.temperature, LOSS_MASK)

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return {UNIT: number_of_pairs(batch)}

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        policy = sequence_logprobs(outputs["logprobs"], micro_batch)
        log_ratio = policy - micro_batch.sequence_fields[REFERENCE].to(policy)
        if self.average:
            counts = trained_tokens(micro_batch).clamp(min=1)
            policy, log_ratio = policy / counts, log_ratio / counts
        chosen, rejected = by_pair(log_ratio, micro_batch)
        losses = PAIR_LOSSES[self.pair_loss](chosen - rejected, self.beta)
        likelier, other = by_pair(policy.detach(), micro_batch)
        metrics = comparison(self.beta * chosen.detach(), self.beta * rejected.detach(), kind="reward")
        metrics["policy_accuracy"] = (UNIT, (likelier > other + TIE).to(losses.dtype).sum())
        return LossSums({UNIT: losses.sum()}, metrics)


@dataclass(frozen=True)
class BradleyTerryLoss:
    """-log sigmoid(r(y) - r(y')) of a reward model (Bradley and Terry 1952; arXiv:2203.02155, eq. 1), with r the value
    at the last token of a sequence; implements ``contracts.loss.Loss``."""

    request: OutputRequest = field(default_factory=lambda: OutputRequest(("values",)))

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return {UNIT: number_of_pairs(batch)}

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        chosen, rejected = by_pair(last_values(outputs["values"], micro_batch), micro_batch)
        losses = -logsigmoid(chosen - rejected)
        return LossSums({UNIT: losses.sum()}, comparison(chosen.detach(), rejected.detach(), kind="score"))


def comparison(chosen: Tensor, rejected: Tensor, *, kind: str) -> dict[str, tuple[Unit, Tensor]]:
    """Sums over pairs: how often ``chosen`` [pairs] is larger, by how much, and both; ties count as wrong."""
    sums = {
        "accuracy": (chosen > rejected + TIE).to(chosen.dtype),
        "margin": chosen - rejected,
        f"chosen_{kind}": chosen,
        f"rejected_{kind}": rejected,
    }
    return {name: (UNIT, values.sum()) for name, values in sums.items()}


def sequence_logprobs(logprobs: Tensor, batch: Batch) -> Tensor:
    """float64 [S]: the sum of ``logprobs`` [T] over the trained tokens of each sequence."""
    return batch.sum_per_sequence(mask_values(logprobs, batch.token_fields[LOSS_MASK]).double())


def last_values(values: Tensor, batch: Batch) -> Tensor:
    """float64 [S]: the entry of ``values`` [T] at the last token of each sequence."""
    return values[torch.tensor(batch.offsets[1:], device=values.device) - 1].double()


def by_pair(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """[pairs] each: the entries of ``values`` [S] of chosen and of rejected sequences."""
    pairs = batch.sequence_fields[PAIRS]
    assert len(batch) % 2 == 0, "a micro-batch holds whole pairs: the engine's granularity is even"
    assert torch.equal(pairs[::2], pairs[1::2]), "the sequences of a pair are side by side"
    return values[::2], values[1::2]


def number_of_pairs(batch: Batch) -> float:
    """Pairs in a batch: its weight in the loss."""
    return len(batch) / 2
