"""``Group``: the trajectories of one record, as they pass from the collector to the trainer and into checkpoints."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from archon_core.contracts.workflows import Trajectory
from archon_rl.rewards.calls import Outcome

_TOKENS, _MASK, _LOGPROBS = "q", "b", "d"


@dataclass(frozen=True)
class Group:
    """The trajectories of one record.

    Attributes:
        rewards: raw rewards, one per trajectory; also of a group that a filter rejected.
        lengths: number of sampled tokens per trajectory.
        truncated: per trajectory, whether it ended at the length limit.
        n_tokens: tokens of all trajectories, prompts included.
        trajectories: none if no step trains on the group and no file lists it.
        seconds: duration of sampling (``rollout``) and of rewards (``reward``).
        failures: reward calls without a reward, or the exception of a workflow; such a group has no rewards.
        n_calls: reward calls.
        facts: the numbers in each trajectory's metadata, also of a group that a filter rejected.
    """

    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    truncated: tuple[bool, ...]
    n_tokens: int
    trajectories: tuple[Trajectory, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Outcome, ...] = ()
    n_calls: int = 0
    facts: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def of(
        cls, trajectories: Sequence[Trajectory], seconds: Mapping[str, float] | None = None, n_calls: int = 0
    ) -> Group:
        """A complete group."""
        return cls(
            tuple(float(one.reward) for one in trajectories),
            tuple(one.n_sampled for one in trajectories),
            tuple(one.truncated for one in trajectories),
            sum(len(one.token_ids) for one in trajectories),
            tuple(trajectories),
            dict(seconds or {}),
            n_calls=n_calls,
            facts=tuple(_numbers_in(one.metadata) for one in trajectories),
        )

    @classmethod
    def without(cls, failures: Sequence[Outcome], seconds: Mapping[str, float], n_calls: int) -> Group:
        """A group that has no trajectories."""
        return cls((), (), (), 0, seconds=dict(seconds), failures=tuple(failures), n_calls=n_calls)

    def without_trajectories(self) -> Group:
        """The facts that statistics need, of a group that no step trains on."""
        return replace(self, trajectories=())

    @property
    def versions(self) -> frozenset[int]:
        """Versions of the weights that sampled its tokens."""
        return frozenset(
            version
            for one in self.trajectories
            for version, sampled in zip(one.versions, one.loss_mask, strict=True)
            if sampled
        )


def _numbers_in(metadata: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metadata.items() if isinstance(value, bool | int | float)}


def group_data(group: Group) -> dict[str, Any]:
    """A group as data for msgpack. Values per token are packed as machine numbers."""
    return {
        "rewards": list(group.rewards),
        "lengths": list(group.lengths),
        "truncated": list(group.truncated),
        "n_tokens": group.n_tokens,
        "trajectories": [_trajectory_data(one) for one in group.trajectories],
        "seconds": dict(group.seconds),
        "failures": [asdict(one) for one in group.failures],
        "n_calls": group.n_calls,
        "facts": [dict(one) for one in group.facts],
    }


def read_group(data: Mapping[str, Any]) -> Group:
    """The group that ``group_data`` described."""
    return Group(
        tuple(data["rewards"]),
        tuple(data["lengths"]),
        tuple(data["truncated"]),
        data["n_tokens"],
        tuple(_read_trajectory(one) for one in data["trajectories"]),
        data["seconds"],
        tuple(Outcome(**one) for one in data["failures"]),
        data["n_calls"],
        tuple(data["facts"]),
    )


def _trajectory_data(trajectory: Trajectory) -> dict[str, Any]:
    experts = trajectory.routed_experts
    return {
        "token_ids": array(_TOKENS, trajectory.token_ids).tobytes(),
        "loss_mask": array(_MASK, trajectory.loss_mask).tobytes(),
        "logprobs": array(_LOGPROBS, trajectory.logprobs).tobytes(),
        "versions": array(_TOKENS, trajectory.versions).tobytes(),
        "reward": trajectory.reward,
        "truncated": trajectory.truncated,
        "routed_experts": None if experts is None else [list(experts.shape), experts.contiguous().numpy().tobytes()],
        "metadata": dict(trajectory.metadata),
    }


def _read_trajectory(data: Mapping[str, Any]) -> Trajectory:
    experts = None
    if data["routed_experts"] is not None:
        import torch

        shape, content = data["routed_experts"]
        experts = torch.frombuffer(bytearray(content), dtype=torch.int16).view(shape)
    return Trajectory(
        tuple(_numbers(_TOKENS, data["token_ids"])),
        tuple(bool(one) for one in _numbers(_MASK, data["loss_mask"])),
        tuple(_numbers(_LOGPROBS, data["logprobs"])),
        tuple(_numbers(_TOKENS, data["versions"])),
        data["reward"],
        data["truncated"],
        experts,
        data["metadata"],
    )


def _numbers(kind: str, content: bytes) -> array[Any]:
    numbers = array(kind)
    numbers.frombytes(content)
    return numbers
