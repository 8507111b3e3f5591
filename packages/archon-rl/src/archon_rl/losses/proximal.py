"""The proximal policy of the decoupled loss without a separate forward pass, and the error of that approximation.

The decoupled loss needs log pi_prox, the log-probabilities at the start of the step. The exact way is a forward pass
then. Between the weights' versions v_behave (of the token's rollout), v_prox (start of the step) and v (now), the
log-linear approximation moves in log space as far as the versions have,

    log pi_prox = log pi_behave + f (log pi - log pi_behave),    f = (v_prox - v_behave) / (v - v_behave),

where log pi is the training pass's own output, without gradient. It is exact at both ends: f = 0 for tokens sampled
with the weights of the start of the step, f = 1 in the step's first update, where pi_prox is pi.

AReaL takes v_prox = v - 1 and v the version after the update; Archon takes the versions that the weights have.
"""

from __future__ import annotations

import torch
from torch import Tensor

PROX_LOGPROBS = "prox_logprobs"
"""Token field [T]: log-probabilities under the policy at the start of the step."""
PROX_FRACTION = "prox_fraction"
"""Token field, float64 [T]: f in the module's docstring."""
VERSIONS = "versions"
"""Token field, int64 [T]: version of the weights that sampled the predicted token."""


def prox_fraction(versions: Tensor, start: int, now: int) -> Tensor:
    """f, float64 [T], from 0 to 1.

    Args:
        versions: of the weights that sampled, int64 [T].
        start: version at the start of the step.
        now: version of the weights that the next update changes.
    """
    passed = (now - versions).double()
    fraction = torch.where(passed > 0, (start - versions).double() / passed.clamp(min=1), 1.0)
    return fraction.clamp(0, 1)


def interpolated(sampled: Tensor, current: Tensor, fraction: Tensor) -> Tensor:
    """The log-linear approximation of log pi_prox, [T]."""
    return sampled + fraction * (current - sampled)


def approximation_errors(proximal: Tensor, sampled: Tensor, current: Tensor, fraction: Tensor) -> dict[str, Tensor]:
    """Absolute errors [T] of approximations of ``proximal``: log-linear, linear in probabilities, and pi_behave."""
    linear = sampled.exp() + fraction * (current.exp() - sampled.exp())
    approximations = {
        "loglinear": interpolated(sampled, current, fraction),
        "linear": linear.clamp(min=torch.finfo(linear.dtype).tiny).log(),
        "rollout": sampled,
    }
    return {f"prox_error/{name}": (value - proximal).abs() for name, value in approximations.items()}
