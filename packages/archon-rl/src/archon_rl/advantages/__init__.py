"""Advantages from rewards: normalisation, generalised advantage estimation, and the estimators that combine them."""

from archon_rl.advantages.estimators import (
    GROUPS,
    REWARDS,
    VALUES,
    GroupAdvantages,
    ValueAdvantages,
    rewards_at_last_token,
)
from archon_rl.advantages.gae import (
    ConstantLambda,
    GAELambda,
    LengthAdaptiveLambda,
    RelativePositionLambda,
    TimestepUnit,
    generalised_advantages,
)
from archon_rl.advantages.normalisation import Normalisation, normalise

__all__ = [
    "GROUPS",
    "REWARDS",
    "VALUES",
    "ConstantLambda",
    "GAELambda",
    "GroupAdvantages",
    "LengthAdaptiveLambda",
    "Normalisation",
    "RelativePositionLambda",
    "TimestepUnit",
    "ValueAdvantages",
    "generalised_advantages",
    "normalise",
    "rewards_at_last_token",
]
