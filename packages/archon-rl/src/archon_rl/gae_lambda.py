"""From ``actor.gae_lambda`` to a form of GAE's lambda."""

from __future__ import annotations

from archon_core.contracts.decisions import Decision
from archon_rl.advantages import ConstantLambda, GAELambda, LengthAdaptiveLambda, RelativePositionLambda
from archon_rl.config import PolicyOptions
from archon_rl.option_checks import LAMBDA_ARGUMENTS, lambda_form

FORMS = {"length_adaptive": LengthAdaptiveLambda, "relative_position": RelativePositionLambda}


def build_gae_lambda(options: PolicyOptions, changes: list[Decision], notes: list[Decision]) -> GAELambda:
    """The form of lambda that ``actor`` asks for.

    Args:
        options: the ``actor`` section, without problems.
        changes: gets a decision if ``gae_lambda_kwargs`` has no effect.
        notes: gets a decision if AReaL's name stands for one of the forms.
    """
    asked, arguments = options.gae_lambda, options.gae_lambda_kwargs
    if not isinstance(asked, str):
        if arguments:
            reason = f"actor.gae_lambda is the number {asked:g}"
            changes.append(Decision("actor.gae_lambda_kwargs", str(arguments), "not used", reason))
        return ConstantLambda(asked)
    name = lambda_form(options)
    if name != asked:
        notes.append(Decision("actor.gae_lambda", asked, name, "the same function; Archon imports no dotted name"))
    argument, _ = LAMBDA_ARGUMENTS[name]
    return FORMS[name](float(arguments[argument]))
