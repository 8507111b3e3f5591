"""The engines that a layout can name: their letters, and whether they support hybrid layouts.

The built-in table allows parsing and explaining a layout whose engine is not installed. The spec of an installed engine
takes precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from archon_core.errors import PluginError
from archon_core.layout.axes import AXIS_NAMES, list_letters

Kind = Literal["train", "inference"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Backend:
    """The grammar's view of an engine.

    Attributes:
        name: the part before the colon.
        kind: training, or inference, where ``d`` is the number of servers.
        letters: axes that may have a size above 1. Empty for an engine without sizes; for inference, that is one on the
            trainer's ranks.
        hybrid: whether ``(attn:...|ffn:...)`` is supported.

    Raises:
        PluginError: the name or a letter is not valid in a layout.
    """

    name: str
    kind: Kind
    letters: str
    hybrid: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise PluginError(
                f"engine name {self.name!r}: found characters that a layout cannot hold; allowed: a letter, then "
                "letters, digits, '_' and '-'; fix: rename the engine's spec"
            )
        unknown = [letter for letter in self.letters if letter not in AXIS_NAMES]
        if unknown or len(set(self.letters)) < len(self.letters):
            raise PluginError(
                f"engine {self.name!r}: found letters {self.letters!r}; allowed: each of "
                f"{list_letters(''.join(AXIS_NAMES))} at most once; fix: correct 'letters' in the engine's spec"
            )

    def example(self) -> str:
        """The smallest layout of this backend."""
        return f"{self.name}:{self.letters[0]}1" if self.letters else self.name


BUILTIN_BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("archon", "train", "dtpcer", hybrid=True),
        Backend("megatron", "train", "dtpcer", hybrid=True),
        Backend("fsdp", "train", "dtcr"),
        Backend("local", "inference", ""),
        Backend("sglang", "inference", "dt"),
        Backend("vllm", "inference", "dtp"),
    )
}


class InferenceBackend(Protocol):
    """The attributes of an ``InferenceEngineSpec`` that a layout depends on."""

    name: str
    aliases: tuple[str, ...]
    letters: str


class TrainBackend(InferenceBackend, Protocol):
    """The attributes of a ``TrainEngineSpec`` that a layout depends on."""

    hybrid: bool


def backend_table(
    train_engines: Iterable[TrainBackend] = (), inference_engines: Iterable[InferenceBackend] = ()
) -> dict[str, Backend]:
    """The built-in table with the installed engines added, under their names and aliases.

    Raises:
        PluginError: a spec's name, alias or letters are not valid in a layout.
    """
    table = dict(BUILTIN_BACKENDS)
    for spec in train_engines:
        for name in (spec.name, *spec.aliases):
            table[name] = Backend(name, "train", spec.letters, spec.hybrid)
    for spec in inference_engines:
        for name in (spec.name, *spec.aliases):
            table[name] = Backend(name, "inference", spec.letters)
    return table
