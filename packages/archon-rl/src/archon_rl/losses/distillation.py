"""On-policy distillation: the reverse KL to a teacher, at tokens that the student sampled.

The objective is KL(pi || p_T) of the student's next-token distribution relative to the teacher's, at every prefix of
the student's completions, estimated from the sampled tokens. With the policy pi_behave that sampled a token, the ratio
r = pi / pi_behave and the gap x = log pi - log p_T, the loss per token is

    l = r sg(x),    sg: without gradient.

Its expectation over pi_behave is the KL, and the expectation of its gradient is the KL's gradient: with the score
s = grad log pi, so that grad r = r s and E_pi[s] = 0,

    E_behave[r x s] = sum_y pi(y) x s = grad KL(pi || p_T).

This is a policy gradient with the advantage -x = log p_T - log pi per token. It holds for every update of a step, up to
prefixes that the current policy would not sample as often.

A baseline b that does not depend on the token changes neither expectation, since E_behave[r - 1] and E_behave[r s] are
0, and can lower the variance:

    l = r sg(x) - (r - 1) b.

``sequence_baseline`` is the mean gap of the batch's other sequences at the start of the step: without it, a student far
from its teacher mostly learns to avoid whatever it sampled.

Sources differ in what they do with that KL:

- GKD (arXiv:2306.13649) trains on the student's samples and sums over the whole vocabulary at each prefix, without a
  gradient through the sampling of the prefix. The sum has less variance, but needs the teacher's logits.
- MiniLLM (arXiv:2306.08543) takes the KL of whole sequences: a token's return includes the gaps of later tokens.
- On-policy distillation (https://thinkingmachines.ai/blog/on-policy-distillation/) takes the token's own gap, as here,
  with log pi_behave in it: equal to x in the first update of a step.
- AReaL has two forms. With ``rl_loss_weight`` 0 it is l. Beside a policy loss it minimises the mean of x itself, whose
  expected gradient is E[s] = 0: the term moves the student only through the difference of pi and pi_behave.

None of them subtracts a baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK, trained_tokens
from archon_rl.losses.masking import mask_values
from archon_rl.losses.objective import TermValues, TokenTerm
from archon_rl.losses.policy_term import LOGPROBS

TEACHER_LOGPROBS = "teacher_logprobs"
"""Token field [T]: log-probabilities of the sampled tokens under the teacher."""
TEACHER_BASELINE = "teacher_baseline"
"""Token field [T]: b in the module's docstring."""


@dataclass(frozen=True)
class DistillationTerm:
    """``weight`` times the KL to the teacher, estimated per token; see the module's docstring.

    Attributes:
        weight: 0 only reports the KL.
        has_baseline: subtract the batch's ``teacher_baseline``.
    """

    weight: float
    has_baseline: bool = False
    name: str = "distill_loss"
    outputs: tuple[OutputName, ...] = ("logprobs",)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({LOGPROBS, TEACHER_LOGPROBS, *([TEACHER_BASELINE] if self.has_baseline else [])})

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        logprobs, fields = outputs["logprobs"], micro_batch.token_fields
        gap = logprobs.detach() - fields[TEACHER_LOGPROBS]
        ratio = (logprobs - fields[LOGPROBS]).exp()
        kl = ratio * gap
        loss = kl - (ratio - 1) * fields[TEACHER_BASELINE] if self.has_baseline else kl
        return TermValues(self.weight * loss, metrics={"teacher_kl": kl.detach()})


def sequence_baseline(gap: Tensor, batch: Batch) -> Tensor:
    """The mean of ``gap`` [T] over the trained tokens of the other sequences, [T]; 0 without others.

    Leaving out the whole sequence keeps the gradient unbiased: gaps of later tokens depend on the token.
    """
    mask = batch.token_fields[LOSS_MASK]
    sums, counts = batch.sum_per_sequence(mask_values(gap, mask)), trained_tokens(batch)
    others = (sums.sum() - sums) / (counts.sum() - counts).clamp(min=1)
    return torch.where(counts.sum() > counts, others, 0)[batch.sequence_ids]


@dataclass(frozen=True)
class WeightedTerm:
    """``weight`` times another term; its metrics stay as they are."""

    term: TokenTerm
    weight: float

    @property
    def name(self) -> str:
        return self.term.name

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        return self.term.outputs

    @property
    def fields(self) -> frozenset[str]:
        return self.term.fields

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        result = self.term(outputs, micro_batch)
        return TermValues(self.weight * result.values, result.metrics)
