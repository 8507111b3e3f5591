"""Options of policy optimisation that have no effect beside other ones (``actor``). Imports no torch.

Each function takes a section ``actor`` without problems, and yields a decision per option that differs from its
default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.changed_options import changed
from archon_rl.config import PolicyOptions
from archon_rl.option_checks import loss_name

READ_BY_DISTILLATION = (
    "ppo_n_minibatches",
    "overlong_filtering",
    "recompute_logprob",
    "loss_aggregation",
    "kl_loss_coef",
    "kl_loss_estimator",
    "entropy_coef",
)
"""Options of policy optimisation that pure distillation reads."""


def without_policy_loss(options: Any) -> Iterator[Decision]:
    """Options that do nothing in pure distillation, which has no policy loss."""
    names = [f.name for f in fields(PolicyOptions) if f.name not in READ_BY_DISTILLATION]
    return _not_used(options, names, "with teacher.rl_loss_weight=0 the actor learns from the teacher alone")


def beside_policy_loss(options: Any) -> Iterator[Decision]:
    """Options that do nothing with the chosen policy loss, form of lambda and proximal policy."""
    loss = registry().get(PolicyLossSpec, loss_name(options))
    others = dict.fromkeys(name for other in registry().all(PolicyLossSpec) for name in other.options)
    unread = [name for name in others if name not in loss.options]
    yield from _not_used(options, unread, f"the policy loss {loss.name} has no such option")
    if options.use_decoupled_loss:
        yield from _not_used(
            options,
            ["recompute_logprob"],
            "actor.use_decoupled_loss compares with the trainer's log-probabilities and weights by their ratio to the "
            "rollout's, so it needs both",
        )
    else:
        yield from _not_used(
            options,
            ["rejection_sampling", "prox_logp_method"],
            "without actor.use_decoupled_loss the loss compares the policy with the rollout's, and its weight is 1",
        )
    if not isinstance(options.gae_lambda, str):
        reason = f"actor.gae_lambda is the number {options.gae_lambda:g}"
        yield from _not_used(options, ["gae_lambda_kwargs"], reason)


def _not_used(options: Any, names: Iterable[str], reason: str) -> Iterator[Decision]:
    ask = partial(changed, options, type(options)())
    for name in names:
        if (asked := ask(name)) is not None:
            yield Decision(f"actor.{name}", asked, "not used", reason)
