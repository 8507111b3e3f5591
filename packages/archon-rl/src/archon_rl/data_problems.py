"""Settings of data and tokenizer with which no run can start. Imports no torch: dry runs load this module.

Each function yields found / allowed / fix sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.preview import RunOutline

BYTES = 256
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Tokens that every tokenizer built from data has: padding, begin and end of text, unknown."""

READ_FILES = ("jsonl", "hf")
"""This package's data sets that read ``data.path``."""


def missing_path(outline: RunOutline) -> Iterator[str]:
    """The problem of a data set that reads files, without one."""
    data, dataset = outline.config.data, outline.dataset
    if dataset is not None and dataset.name in READ_FILES and not data.path:
        yield explain_missing_path(dataset.name)


def explain_missing_path(dataset: str) -> str:
    example = {"hf": "openai/gsm8k"}.get(dataset, "train.jsonl")
    return f"data.path: found none, and data set {dataset!r} needs one; add data.path={example}"


def data_problems(outline: RunOutline) -> Iterator[str]:
    """Problems of the section ``data``."""
    data, dataset = outline.config.data, outline.dataset
    if dataset is None:
        return
    if not dataset.preferences and hasattr(data, "chosen_key"):
        yield (
            f"data.dataset: found {dataset.name}, whose records are no preferences; algorithm "
            f"{outline.algorithm.name!r} learns from pairs of answers; choose jsonl or hf"
        )
    elif dataset.name == "arithmetic":
        yield from missing_answers(data)
    if dataset.name == "hf":
        yield from same_validation(data)


def missing_answers(data: Any) -> Iterator[str]:
    """The problem of generated records without a field for their results."""
    if data.answer_key is None:
        yield (
            "data.answer_key: found null; the data set 'arithmetic' needs a field name for its results; set "
            "data.answer_key=answer"
        )


def same_validation(data: Any) -> Iterator[str]:
    """The problem of a held-out split that is the training split."""
    path, split = data.validation_path or data.path, data.hf.validation_split or data.hf.split
    if (data.validation_path or data.hf.validation_split) and (path, split) == (data.path, data.hf.split):
        yield (
            f"data.hf.validation_split: found split {split!r} of {path!r}, which is the training data; choose another "
            "split, or set data.validation_size alone"
        )


def tokenizer_problems(config: Any) -> Iterator[str]:
    """Problems of the tokenizer and of the models that should read its tokens."""
    kind, actor = config.tokenizer.kind, config.actor
    if kind == "pretrained":
        if not config.tokenizer_path and not actor.path:
            yield (
                "tokenizer.kind: found 'pretrained', and neither tokenizer_path nor actor.path; set one of them, or "
                "build a tokenizer from the data with tokenizer.kind=characters or bpe"
            )
        return
    if actor.path and not actor.init_from_scratch:
        yield (
            f"tokenizer.kind: found {kind!r}, but the weights of actor.path={actor.path!r} were trained with another "
            "tokenizer; set tokenizer.kind=pretrained, or actor.init_from_scratch=true"
        )
    if kind == "bpe":
        yield from too_small_vocabulary(config.tokenizer.vocab_size)


def too_small_vocabulary(vocab_size: int) -> Iterator[str]:
    """The problem of a vocabulary without room for all bytes."""
    least = BYTES + len(SPECIAL_TOKENS)
    if vocab_size < least:
        yield (
            f"tokenizer.vocab_size: found {vocab_size}; allowed is at least {least}, for all bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens; raise it"
        )
