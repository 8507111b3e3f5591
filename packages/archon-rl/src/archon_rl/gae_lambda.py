"""From ``actor.gae_lambda`` to a form of GAE's lambda. Dotted names are looked up here; none is imported."""

from __future__ import annotations

import math
from collections.abc import Callable

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError, did_you_mean
from archon_rl.advantages import ConstantLambda, GAELambda, LengthAdaptiveLambda, RelativePositionLambda
from archon_rl.config import PolicyOptions

FORMS: dict[str, tuple[str, Callable[[float], GAELambda], float]] = {
    "length_adaptive": ("alpha", LengthAdaptiveLambda, math.inf),
    "relative_position": ("q", RelativePositionLambda, 1.0),
}
"""Name -> its argument in ``gae_lambda_kwargs``, the form, and the largest value of the argument."""

AREAL_NAMES = {
    "areal.trainer.ppo.lambda_fn.vapo_length_adaptive_gae": "length_adaptive",
    "areal.trainer.ppo.lambda_fn.relative_position_gae_lambda": "relative_position",
}


def build_gae_lambda(options: PolicyOptions, decisions: list[Decision]) -> GAELambda:
    """The form of lambda that ``actor`` asks for.

    Raises:
        ConfigError: the name is unknown, or its argument is missing or out of range.
    """
    asked, arguments = options.gae_lambda, options.gae_lambda_kwargs
    if not isinstance(asked, str):
        if not 0 <= asked <= 1:
            raise ConfigError(f"actor.gae_lambda: found {asked}; allowed is from 0 to 1, or one of {', '.join(FORMS)}")
        if arguments:
            decisions.append(
                Decision("actor.gae_lambda_kwargs", str(arguments), "not used", f"actor.gae_lambda is {asked:g}")
            )
        return ConstantLambda(asked)
    name = AREAL_NAMES.get(asked, asked)
    if name not in FORMS:
        hint = did_you_mean(name, FORMS) or "; dotted names are not imported" * ("." in name)
        raise ConfigError(f"actor.gae_lambda: found {asked!r}; allowed are numbers and {', '.join(FORMS)}{hint}")
    argument, form, most = FORMS[name]
    value = arguments.get(argument)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
    if set(arguments) != {argument} or not valid or not math.isfinite(value):
        limit = f" up to {most:g}" if math.isfinite(most) else ""
        raise ConfigError(
            f"actor.gae_lambda_kwargs: found {arguments} with gae_lambda={asked}; it needs {{{argument}: NUMBER}}, "
            f"above 0{limit}"
        )
    if name != asked:
        decisions.append(Decision("actor.gae_lambda", asked, name, "the same function; Archon imports no dotted name"))
    return form(float(value))
