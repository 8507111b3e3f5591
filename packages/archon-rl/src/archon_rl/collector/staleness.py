"""Staleness of groups: training steps between the weights that sampled a token and the step that consumes it.

Pure: works on versions and steps. Labels that contradict each other are errors, because the loss would compare tokens
with the wrong policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from archon_core.errors import TrainingError
from archon_rl.collector.group import Group

SHOWN_AGES = 8
"""Ages whose shares are always reported, so that their curves have no gaps; others are reported where they occur."""

_FIX = "a server labels its tokens wrongly: restart it"


@dataclass(frozen=True)
class GroupAges:
    """Ages of one group's tokens, in training steps.

    Attributes:
        tokens: age -> number of sampled tokens.
        in_flight: steps that were published while the group was sampled.
        in_queue: steps that were published after its last token.
    """

    tokens: Mapping[int, int] = field(default_factory=dict)
    in_flight: int = 0
    in_queue: int = 0

    @property
    def oldest(self) -> int:
        """The largest age; 0 without sampled tokens."""
        return max(self.tokens, default=0)


def ages_of(group: Group, steps: Mapping[int, int], step: int) -> GroupAges:
    """The ages of a group that ``step`` consumes.

    Args:
        group: with its trajectories.
        steps: version -> number of training steps after which it was published.
        step: counted from 0.

    Raises:
        TrainingError: a version was never published, is newer than the step, or goes back within a completion.
    """
    tokens: Counter[int] = Counter()
    for one in group.trajectories:
        for sampled, run in groupby(zip(one.loss_mask, one.versions, strict=True), key=lambda token: token[0]):
            if not sampled:
                continue
            before: int | None = None
            for version, found in groupby(version for _, version in run):
                if version not in steps:
                    raise TrainingError(f"rollout: found a token of version {version}; {_explain(version, steps)}")
                if before is not None and version < before:
                    raise TrainingError(
                        f"rollout: found a token of version {version} after one of version {before} in a completion; "
                        f"versions never go back; {_FIX}"
                    )
                age = step - steps[version]
                if age < 0:
                    raise TrainingError(
                        f"rollout: found a token of the weights after {steps[version]} steps in the batch of step "
                        f"{step + 1}; allowed are those after at most {step}; {_FIX}"
                    )
                tokens[age] += len(list(found))
                before = version
    if not tokens:
        return GroupAges()
    return GroupAges(dict(tokens), max(tokens) - min(tokens), min(tokens))


def _explain(version: int, steps: Mapping[int, int]) -> str:
    """The end of the error about a version that was never published; a run may have published thousands."""
    nearest = min(steps, key=lambda published: abs(published - version))
    return f"{len(steps)} were published, from {min(steps)} to {max(steps)}; the nearest is {nearest}; {_FIX}"


def staleness_metrics(kept: Sequence[GroupAges], dropped: Sequence[GroupAges], *, bound: int) -> dict[str, float]:
    """Metrics of a step.

    Args:
        kept: of the groups that are trained on.
        dropped: of the groups that are too old.
        bound: ``rollout.max_head_offpolicyness``.
    """
    groups = [*kept, *dropped]
    tokens: Counter[int] = Counter()
    for one in kept:
        tokens.update(one.tokens)
    shown = {*range(min(bound, SHOWN_AGES) + 1), *tokens}
    n, n_tokens = max(len(groups), 1), max(tokens.total(), 1)
    return {
        "staleness": sum(one.oldest for one in groups) / n,
        "staleness_max": max((one.oldest for one in groups), default=0),
        "staleness_in_flight": sum(one.in_flight for one in groups) / n,
        "staleness_in_queue": sum(one.in_queue for one in groups) / n,
        "stale_prompts": len(dropped),
        "trained_tokens": tokens.total(),
        **{f"staleness/{age}": tokens[age] / n_tokens for age in sorted(shown)},
    }
