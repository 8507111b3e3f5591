"""Which metrics a page shows together, and their titles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from archon_report.series import HELD_OUT_REWARD


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
            (HELD_OUT_REWARD, "held-out reward"),
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
            ("approx_kl", "KL to the start of the step, nats"),
            ("kl_ref", "KL to the reference, nats"),
            ("rollout_kl_ref", "KL of the rollout to the reference, nats"),
            ("clip_fraction", "clip fraction"),
            ("entropy", "entropy, nats"),
            ("ratio", "ratio to the start of the step"),
            ("rollout_logprob_gap", "log-probability gap of sampler and trainer, nats"),
            ("learning_rate", "learning rate"),
            ("skipped_updates", "skipped updates"),
        ),
    ),
    (
        "Critic",
        (
            ("critic/explained_variance", "explained variance"),
            ("critic/value_loss", "value loss"),
            ("critic/gradient_norm", "gradient norm"),
            ("critic/value_clip_fraction", "clip fraction"),
            ("critic/values", "mean value"),
            ("critic/returns", "mean return"),
        ),
    ),
    (
        "Completions",
        (
            ("completion_tokens", "tokens per completion"),
            ("truncated", "share cut at the length limit"),
            ("selected", "share of completions trained on"),
            ("reward/failed", "completions without a reward"),
            (r"dropped/(.+)", "dropped groups: {}"),
            (r"workflow/.+", ""),
        ),
    ),
    (
        "Speed",
        (
            ("tokens_per_second", "tokens/s"),
            ("time/step", "time per step"),
            ("tokens", "tokens per step"),
            ("memory/peak_gb", "peak memory, GB"),
            (r"(.*/)?memory[/_].+", ""),
            ("publish/seconds", "publication of weights"),
        ),
    ),
    (
        "Staleness",
        (
            ("staleness", "staleness, steps"),
            ("staleness_max", "largest staleness, steps"),
            ("behave_weight", "weight against the sampler"),
            ("behave_clamped", "share of weights clamped"),
            ("behave_masked", "share of tokens masked"),
            ("collector/waiting", "groups that wait"),
            ("collector/running", "groups in flight"),
            ("collector/server_idle", "idle share of server time"),
            ("stale_prompts", "prompts dropped as too old"),
        ),
    ),
    (
        "Experts",
        (
            ("moe/expert_load_max_over_mean", "largest load over mean"),
            ("moe/expert_load_max", "largest load over mean, of any layer"),
            ("moe/expert_load_min_over_mean", "smallest load over mean"),
            ("moe/experts_unused", "share of unused experts"),
            ("moe/router_entropy", "router entropy, nats"),
            ("moe/aux_loss", "balancing loss"),
        ),
    ),
)


USUALLY_ZERO = re.compile(r"skipped_updates|reward/failed|stale_prompts|truncated|dropped/.+")
"""Metrics that stand among the others while they are zero all the time."""


def panels_of(metrics: Iterable[str], *, zero: Collection[str] = ()) -> list[Panel]:
    """Panels for all metrics: the known ones in their groups, then the others by name.

    Args:
        metrics: of all runs.
        zero: the ones that are zero in every run all the time.
    """
    names = sorted(metrics)
    quiet = [name for name in names if name in zero and USUALLY_ZERO.fullmatch(name)]
    left = [name for name in names if name not in quiet]
    found = []
    for group, known in _GROUPS:
        for pattern, title in known:
            for match in [match for name in left if (match := re.fullmatch(pattern, name))]:
                left.remove(match[0])
                words = [word.replace("_", " ") for word in match.groups(default="")]
                found.append(Panel(match[0], title.format(*words) or match[0], group))
    return found + [Panel(metric, metric, OTHERS) for metric in sorted([*left, *quiet])]
