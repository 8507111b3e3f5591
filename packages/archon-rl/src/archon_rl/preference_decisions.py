"""Decisions about the options of preference training. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.decisions import Decision

PAIR = 2
"""Sequences of a pair, which stay together."""


def granularity_changes(options: Any) -> Iterator[Decision]:
    """A size of micro-batches that would split pairs, or join them."""
    asked = options.mb_spec.granularity
    if asked != PAIR:
        reason = "the two sequences of a pair share a micro-batch, and pairs are independent"
        yield Decision("actor.mb_spec.granularity", str(asked), str(PAIR), reason)


def head_changes(options: Any) -> Iterator[Decision]:
    """The value head that a reward model has."""
    if not options.is_critic:
        yield Decision("actor.is_critic", "false", "true", "a reward model has a value head")


def unused_ipo_options(options: Any) -> Iterator[Decision]:
    """An option of IPO beside another loss."""
    if options.loss_type != "ipo" and options.ipo_logprobs != "mean":
        reason = "actor.loss_type is sigmoid, whose log-probabilities are sums"
        yield Decision("actor.ipo_logprobs", options.ipo_logprobs, "not used", reason)


def dpo_differences(options: Any, ref: Any) -> Iterator[Decision]:
    """Where a paper and AReaL differ.

    Args:
        options: the section ``actor``.
        ref: the section ``ref``.
    """
    if options.loss_type == "ipo":
        yield _ipo_form(options.ipo_logprobs)
    if ref is None:
        reason = "DPO compares with the policy before training; AReaL compares with a log-probability of 0 instead"
        yield Decision("ref", "left out", "the actor's initial weights", reason)


def _ipo_form(form: str) -> Decision:
    effective, reason = {
        "mean": (
            "log-probabilities averaged over the answer's tokens",
            "TRL and AReaL average, as the paper's authors advised, so that beta does not depend on length; eq. 17 of "
            "arXiv:2310.12036 sums: actor.ipo_logprobs=sum",
        ),
        "sum": (
            "log-probabilities summed over the answer's tokens",
            "eq. 17 of arXiv:2310.12036 sums; TRL and AReaL average: actor.ipo_logprobs=mean",
        ),
    }[form]
    return Decision("actor.ipo_logprobs", form, effective, reason)
