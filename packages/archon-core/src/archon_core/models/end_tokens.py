"""The tokens that end a completion: one rule for rollouts, evaluation, ``archon generate`` and servers.

They are the union of the tokenizer's end of text, the model's list, and ``stop_token_ids`` of the sampling options;
with ``ignore_eos``, only the latter. The
model's list is ``eos_token_id`` in ``generation_config.json``, a number or a list; if a folder lacks that file, it is
``eos_token_id`` in ``config.json``, as in ``transformers`` 5. Many chat models end a turn with a token that is not
their tokenizer's end of text.

Imports neither torch nor transformers, because dry runs read the same files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError, ModelError
from archon_core.models.json_file import json_kind, read_entries

GENERATION_CONFIG = "generation_config.json"
OPTION = "gconfig.stop_token_ids"
_TEXT_SECTIONS = ("decoder", "generator", "text_config")
"""Sections of a composite ``config.json`` in which ``transformers`` looks for the settings of the language model."""


@dataclass(frozen=True)
class NamedIds:
    """Token ids and their source, as messages name it."""

    source: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelEnds(NamedIds):
    """The model's list.

    Attributes:
        vocab_size: size of the model's vocabulary; ``None`` if its configuration does not tell.
    """

    vocab_size: int | None = None


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a completion, by source.

    Attributes:
        tokenizer: the tokenizer's end of text.
        model: the model's list.
        asked: ``stop_token_ids`` of the sampling options.
        ignore_eos: the tokens of tokenizer and model do not end completions.
    """

    tokenizer: NamedIds
    model: NamedIds
    asked: NamedIds
    ignore_eos: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """All end tokens, each once."""
        return tuple(dict.fromkeys((*(() if self.ignore_eos else self.own), *self.asked.ids)))

    @property
    def own(self) -> tuple[int, ...]:
        """The end tokens of tokenizer and model, which a saved model's files should contain."""
        return tuple(dict.fromkeys((*self.tokenizer.ids, *self.model.ids)))

    def described(self) -> str:
        """Every token with its sources."""
        named = (self.asked,) if self.ignore_eos else (self.tokenizer, self.model, self.asked)
        return "; ".join(f"{i} is {' and '.join(n.source for n in named if i in n.ids)}" for i in self.ids)

    def decision(self) -> Decision:
        """A decision that lists all end tokens with their sources."""
        reason = "; ".join(filter(None, ("gconfig.ignore_eos=true" if self.ignore_eos else "", self.described())))
        return Decision(OPTION, str(list(self.asked.ids)), str(list(self.ids)), reason)


def end_tokens(
    tokenizer_id: int | None,
    model: ModelEnds,
    asked: Sequence[int] = (),
    *,
    ignore_eos: bool = False,
    option: str = OPTION,
) -> EndTokens:
    """Combine the tokens that end a completion.

    Args:
        tokenizer_id: ``eos_token_id`` of the tokenizer.
        model: see ``folder_ends`` and ``config_ends``.
        asked, ignore_eos: ``stop_token_ids`` and ``ignore_eos`` of the sampling options.
        option: name of ``asked``, for messages.

    Raises:
        ConfigError: an id of the tokenizer or of ``asked`` is outside the model's vocabulary.
    """
    tokenizer = NamedIds("the tokenizer's end of text", () if tokenizer_id is None else (tokenizer_id,))
    named = EndTokens(tokenizer, model, NamedIds(option, tuple(asked)), ignore_eos)
    if model.vocab_size is not None:
        _check_range(tokenizer, model.vocab_size, ConfigError, "use the tokenizer that belongs to the model")
        _check_range(named.asked, model.vocab_size, ConfigError, "leave it out")
    return named


def folder_ends(folder: Path) -> ModelEnds:
    """The model's list in a checkpoint folder.

    Raises:
        ModelError: a file is not a JSON object, or its list contains anything but ids of the vocabulary in
            ``config.json``.
    """
    config = read_entries(folder / "config.json") if (folder / "config.json").is_file() else {}
    file = folder / GENERATION_CONFIG
    # Not is_file(): a dangling link, or a folder of that name, must raise instead of being ignored.
    if file.exists() or file.is_symlink():
        ids = _ids(read_entries(file).get("eos_token_id"), f"{file}: eos_token_id")
        return _checked(ModelEnds(f"eos_token_id in {file}", ids, _vocab_size(config)))
    return config_ends(config, str(folder / "config.json"))


def config_ends(config: Mapping[str, Any], where: str) -> ModelEnds:
    """The model's list in the content of a ``config.json``; ``where`` names the file in messages.

    Raises:
        ModelError: the list contains anything but ids of the vocabulary.
    """
    ids = _ids(_entry(config, "eos_token_id"), f"{where}: eos_token_id")
    return _checked(ModelEnds(f"eos_token_id in {where}", ids, _vocab_size(config)))


def _entry(config: Mapping[str, Any], name: str) -> Any:
    """An entry at the top level of a configuration, or in its section of the language model."""
    if config.get(name) is not None:
        return config[name]
    text = next((config[key] for key in _TEXT_SECTIONS if config.get(key)), {})
    return text.get(name) if isinstance(text, Mapping) else None


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    found = _entry(config, "vocab_size")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _ids(value: Any, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    # JSON's true is an int in Python.
    wrong = [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]
    if wrong:
        found = json_kind(wrong[0])
        raise ModelError(
            f"{where}: found {found}; allowed is a token id, a list of token ids, or null; correct it, or copy the "
            "file again"
        )
    return tuple(dict.fromkeys(ids))


def _checked(model: ModelEnds) -> ModelEnds:
    _check_range(model, model.vocab_size, ModelError, "correct the list, or copy the file again")
    return model


def _check_range(named: NamedIds, vocab_size: int | None, kind: type[ConfigError | ModelError], fix: str) -> None:
    outside = [i for i in named.ids if i < 0 or (vocab_size is not None and i >= vocab_size)]
    if outside:
        allowed = "ids from 0" if vocab_size is None else f"the ids of the vocabulary, 0 to {vocab_size - 1}"
        raise kind(f"{named.source}: found {outside[0]}; allowed are {allowed}; {fix}")
