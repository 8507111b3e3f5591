"""Contracts of data plugins: records, tokenizers and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from archon_core.contracts.spec import Spec


@dataclass(frozen=True)
class RewardSpec(Spec):
    """A reward. ``target`` names a ``Reward``, or with ``role`` a class like
    ``archon_rl.trainer.reward_model:RewardModel``.

    Attributes:
        role: section of the configuration with the model that scores; empty for a function.
    """

    kind: ClassVar[str] = "reward"
    hook: ClassVar[str] = "archon_rewards"

    role: str = ""


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """A source of training records. ``target`` names a ``DatasetFactory``.

    Attributes:
        unused: options of the section ``data`` that it does not read, such as ``"path"``. Setting one is then recorded
            as a decision.
        preferences: whether its records can hold preferences; ``False`` for generated problems.
    """

    kind: ClassVar[str] = "dataset"
    hook: ClassVar[str] = "archon_datasets"

    unused: tuple[str, ...] = ()
    preferences: bool = True


class Tokenizer(Protocol):
    """The part of a ``transformers`` tokenizer that trainers use."""

    eos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


REWARD_PARAMETERS = ("prompt", "completion", "record")
"""The positional parameters of a ``Reward``."""


class Reward(Protocol):
    """Scores a completion. ``record`` is the data set's record of the prompt.

    It is called in processes without torch's and the trainer's state, each call with a time limit
    (``rewards.timeout_seconds``).
    """

    def __call__(self, prompt: str, completion: str, record: Mapping[str, Any]) -> float:
        """Return one finite number of Python, numpy or torch, or a boolean.

        After anything else, any other exception, or no answer in time, training goes on without the prompt of the
        completion. Raise a DataError about a record that cannot be scored; its message is shown without a traceback.

        Raises:
            ConfigError: no completion can be scored with this configuration; ends the run.
        """


class Dataset(Protocol):
    """The records of one split. An index always returns the same record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class DatasetFactory(Protocol):
    """``target`` of a ``DatasetSpec``."""

    def __call__(self, config: Any, *, split: Literal["train", "validation"], seed: int) -> Dataset: ...
