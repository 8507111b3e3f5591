"""The clipped policy loss, with the asymmetric, dual-clip and decoupled variants.

Per token, with the ratio r = pi / pi_prox, advantage A and behaviour weight w = pi_prox / pi_behave:

- PPO (arXiv:1707.06347, eq. 7): ``l = max(-r A, -clip(r, 1 - eps, 1 + eps) A)``.
- Asymmetric bounds, "clip higher" (DAPO, arXiv:2503.14476, eq. 10): the upper bound is ``1 + eps_higher``.
- Dual clip (arXiv:1912.09729, eq. 5): for A < 0, ``l = min(l, -c A)``, so that a large ratio cannot dominate.
- Decoupled (arXiv:2110.00641; for asynchronous training, arXiv:2505.24298): pi_prox is the policy at the start of
  the step, pi_behave the policy that sampled, and ``l`` is multiplied by w. Otherwise pi_prox is pi_behave and w = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.kl import kl_estimate
from archon_rl.losses.objective import TermValues

ADVANTAGES = "advantages"
"""Token field [T]."""
LOGPROBS = "logprobs"
"""Token field [T]: log-probabilities of the sampled tokens under the behaviour policy."""
PROX_LOGPROBS = "prox_logprobs"
"""Token field [T]: log-probabilities under the policy at the start of the step."""


@dataclass(frozen=True)
class BehaviourWeight:
    """The decoupled loss's weight ``w = pi_prox / pi_behave``.

    Attributes:
        cap: limit of w; ``None`` for none.
        mode: above the limit, ``token_mask`` sets w to 0 and ``token_truncate`` to the limit.
    """

    cap: float | None = 5.0
    mode: Literal["token_mask", "token_truncate"] = "token_mask"

    def __call__(self, proximal: Tensor, behaviour: Tensor) -> tuple[Tensor, Tensor]:
        """w [T], and bool [T]: true where w exceeded the limit."""
        weight = (proximal - behaviour).exp()
        if self.cap is None:
            return weight, torch.zeros_like(weight, dtype=torch.bool)
        above = weight > self.cap
        return weight.masked_fill(above, 0.0 if self.mode == "token_mask" else self.cap), above


@dataclass(frozen=True)
class ClippedPolicyTerm:
    """The clipped surrogate.

    Attributes:
        eps_clip: distance of the lower bound from 1.
        eps_clip_higher: distance of the upper bound from 1; ``None`` for the same.
        c_clip: bound of the dual clip, above 1; ``None`` for none.
        behaviour: weights of the decoupled loss; ``None`` for the plain loss.
    """

    eps_clip: float = 0.2
    eps_clip_higher: float | None = None
    c_clip: float | None = None
    behaviour: BehaviourWeight | None = None
    name: str = "policy_loss"
    outputs: tuple[OutputName, ...] = ("logprobs",)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({ADVANTAGES, LOGPROBS} | ({PROX_LOGPROBS} if self.behaviour else set()))

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        logprobs, fields = outputs["logprobs"], micro_batch.token_fields
        advantages, sampled = fields[ADVANTAGES], fields[LOGPROBS]
        proximal = fields[PROX_LOGPROBS] if self.behaviour else sampled

        log_ratio = logprobs - proximal
        ratio = log_ratio.detach().exp()
        upper = 1 + (self.eps_clip if self.eps_clip_higher is None else self.eps_clip_higher)
        lower = 1 - self.eps_clip
        clipped = ((advantages > 0) & (ratio > upper)) | ((advantages < 0) & (ratio < lower))
        bound = ratio.clamp(lower, upper)
        metrics = {
            "ratio": ratio,
            "clip_fraction": clipped.to(ratio.dtype),
            # KL(pi_prox || pi), in this order: the samples come from the proximal policy.
            "approx_kl": kl_estimate(proximal, logprobs.detach(), "k3"),
        }
        constant = clipped | (advantages == 0)
        if self.c_clip is not None:
            dual = (advantages < 0) & (ratio > self.c_clip)
            bound = torch.where(dual, self.c_clip, bound)
            constant = constant | dual
            metrics["dual_clip_fraction"] = dual.to(ratio.dtype)
        weight = None
        if self.behaviour is not None:
            weight, above = self.behaviour(proximal, sampled)
            metrics["behave_weight"] = weight
            metrics["behave_capped_fraction"] = above.to(ratio.dtype)
            weight = torch.where(advantages == 0, 0, weight)
            constant = constant | (weight == 0)
        # A token whose loss is constant must not pass through exp: where the ratio overflows, its zero gradient would
        # become 0 * inf = NaN.
        loss = -torch.where(constant, bound, torch.where(constant, 0, log_ratio).exp()) * advantages
        return TermValues(loss if weight is None else loss * weight, metrics)
