"""Which metrics a page shows together, and their titles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """The curves of one metric.

    Attributes:
        metric: its name.
        title: of the chart.
        group: heading under which it stands.
    """

    metric: str
    title: str
    group: str


OTHERS = "All other metrics"

_GROUPS: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    (
        "Learning",
        (
            ("reward", "reward"),
            (r"eval/reward(_avg@\d+)?", "held-out reward"),
            (r"eval/pass@\d+", ""),
            ("loss", "loss"),
            ("eval/loss", "held-out loss"),
            ("cross_entropy", "cross-entropy"),
            ("accuracy", "accuracy"),
            ("eval/accuracy", "held-out accuracy"),
            ("margin", "margin"),
            ("teacher_kl", "KL to the teacher"),
            ("reward_std", "reward, standard deviation"),
        ),
    ),
    (
        "Stability",
        (
            ("gradient_norm", "gradient norm"),
            ("approx_kl", "KL to the start of the step"),
            ("kl_ref", "KL to the reference"),
            ("rollout_kl_ref", "KL of the rollout to the reference"),
            ("clip_fraction", "clip fraction"),
            ("entropy", "entropy"),
            ("ratio", "ratio"),
            ("rollout_logprob_gap", "log-probability gap of sampler and trainer"),
            ("learning_rate", "learning rate"),
            ("skipped_updates", "skipped updates"),
            ("critic/explained_variance", "critic: explained variance"),
            ("critic/value_loss", "critic: value loss"),
        ),
    ),
    (
        "Completions",
        (
            ("completion_tokens", "tokens per completion"),
            ("truncated", "share cut at the length limit"),
            ("selected", "share of completions trained on"),
            ("reward/failed", "completions without a reward"),
            (r"workflow/.+", ""),
        ),
    ),
    (
        "Speed",
        (
            ("tokens_per_second", "tokens/s"),
            ("time/step", "seconds per step"),
            ("tokens", "tokens per step"),
            (r"(.*/)?memory[/_].+", ""),
            ("publish/seconds", "publication of weights, seconds"),
        ),
    ),
    (
        "Staleness",
        (
            ("staleness", "staleness"),
            ("staleness_max", "staleness, largest"),
            ("collector/waiting", "groups that wait"),
            ("collector/running", "groups in flight"),
            ("collector/server_idle", "share of idle server time"),
            ("stale_prompts", "prompts dropped as too old"),
        ),
    ),
    (
        "Experts",
        (
            ("moe/expert_load_max_over_mean", "largest load over mean"),
            ("moe/expert_load_min_over_mean", "smallest load over mean"),
            ("moe/experts_unused", "share of unused experts"),
            ("moe/router_entropy", "router entropy"),
            ("moe/aux_loss", "balancing loss"),
        ),
    ),
)


USUALLY_ZERO = ("skipped_updates", "reward/failed", "stale_prompts", "clip_fraction", "truncated")
"""Metrics that stand among the others while they are zero all the time."""


def panels_of(metrics: Iterable[str], *, zero: Collection[str] = ()) -> list[Panel]:
    """Panels for all metrics: the known ones in their groups, then the others by name.

    Args:
        metrics: of all runs.
        zero: the ones that are zero in every run all the time.
    """
    names = sorted(metrics)
    quiet = [name for name in names if name in zero and name in USUALLY_ZERO]
    left = [name for name in names if name not in quiet]
    found = []
    for group, known in _GROUPS:
        for pattern, title in known:
            for metric in [name for name in left if re.fullmatch(pattern, name)]:
                left.remove(metric)
                found.append(Panel(metric, title or metric, group))
    return found + [Panel(metric, metric, OTHERS) for metric in sorted([*left, *quiet])]
