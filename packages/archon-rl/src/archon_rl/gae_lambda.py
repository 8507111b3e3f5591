"""From ``actor.gae_lambda`` to a form of GAE's lambda."""

from __future__ import annotations

from archon_rl.advantages import ConstantLambda, GAELambda, LengthAdaptiveLambda, RelativePositionLambda
from archon_rl.config import PolicyOptions
from archon_rl.option_checks import LAMBDA_ARGUMENTS, lambda_form

FORMS = {"length_adaptive": LengthAdaptiveLambda, "relative_position": RelativePositionLambda}


def build_gae_lambda(options: PolicyOptions) -> GAELambda:
    """The form of lambda that ``actor`` asks for.

    Args:
        options: the ``actor`` section, without problems.
    """
    if not isinstance(options.gae_lambda, str):
        return ConstantLambda(options.gae_lambda)
    name = lambda_form(options)
    argument, _ = LAMBDA_ARGUMENTS[name]
    return FORMS[name](float(options.gae_lambda_kwargs[argument]))
