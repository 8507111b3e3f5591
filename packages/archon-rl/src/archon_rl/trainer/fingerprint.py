"""Fingerprints of a run's records, tokenizer and chat template.

Checkpoints store them and a resumed run compares them, since files, packages and folders can change behind unchanged
options.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

from archon_rl.fingerprint import Fingerprint, json_bytes


def records_fingerprint(records: Iterable[Mapping[str, Any]]) -> Fingerprint:
    """Fingerprint of records and their order. All fields count, since a reward may read any; their order does not."""
    digest, count = hashlib.sha256(), 0
    for record in records:
        digest.update(_record_bytes(record))
        count += 1
    return Fingerprint(digest.hexdigest(), f"{count} records")


def tokenizer_fingerprint(tokenizer: Any) -> Fingerprint:
    """Fingerprint of a tokenizer: vocabulary, merges, normalisation and special tokens; not the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = {} if backend is None else json.loads(backend.to_str())
    for state in ("truncation", "padding", "version"):  # encoding a batch changes the first two
        pipeline.pop(state, None)
    content = {
        "pipeline": pipeline or sorted(tokenizer.get_vocab().items()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "cleans_up": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    }
    about = f"{type(tokenizer).__name__} with {len(tokenizer)} tokens"
    return Fingerprint.of(content, about)


def template_fingerprint(tokenizer: Any) -> Fingerprint:
    """Fingerprint of a tokenizer's chat template, or of its named templates."""
    template = tokenizer.chat_template
    about = "no chat template" if not template else f"a chat template of {len(str(template))} characters"
    return Fingerprint.of(template or None, about)


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    try:
        return json_bytes(record) + b"\n"  # compact JSON has no newlines, so records cannot run together
    except (TypeError, ValueError, RecursionError):  # keys of mixed types, integers of thousands of digits
        return pickle.dumps(record, protocol=4)
