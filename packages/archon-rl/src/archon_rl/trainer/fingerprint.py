"""Fingerprints of a run's inputs: records, tokenizer, chat template and reward.

Checkpoints store them and a resumed run compares them, since files, packages and folders can change behind unchanged
options. They depend on content alone, not on layout, machine or paths.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from archon_core.plugins import RewardSpec

SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of one input.

    Attributes:
        digest: SHA-256 of the content, in hexadecimal.
        about: description for messages.
    """

    digest: str
    about: str

    def __str__(self) -> str:
        return f"{self.about} (sha256 {self.digest[:SHOWN_DIGITS]})"


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
    return Fingerprint(hashlib.sha256(_json_bytes(content)).hexdigest(), about)


def template_fingerprint(tokenizer: Any) -> Fingerprint:
    """Fingerprint of a tokenizer's chat template, or of its named templates."""
    template = tokenizer.chat_template
    about = "no chat template" if not template else f"a chat template of {len(str(template))} characters"
    return Fingerprint(hashlib.sha256(_json_bytes(template or None)).hexdigest(), about)


def reward_fingerprint(spec: RewardSpec) -> Fingerprint:
    """Fingerprint of a loaded reward: the source of its module, and of the modules of its package that it imports.

    Without source, for a compiled module, it is the version of the package.
    """
    version = _version(spec.origin)
    module, _, attribute = spec.target.partition(":")
    sources = _sources(module)
    content = {"attribute": attribute, **({"sources": sources} if sources else {"version": version})}
    about = f"reward {spec.name!r} of {spec.origin or module} {version}".rstrip()
    return Fingerprint(hashlib.sha256(_json_bytes(content)).hexdigest(), about)


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    try:
        return _json_bytes(record) + b"\n"  # compact JSON has no newlines, so records cannot run together
    except (TypeError, ValueError, RecursionError):  # keys of mixed types, integers of thousands of digits
        return pickle.dumps(record, protocol=4)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_described).encode()


def _described(value: object) -> str:
    """A value that JSON has no form for, without the address that a plain repr would show."""
    return f"{type(value).__module__}.{type(value).__qualname__} " + re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution) if distribution else ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sources(module: str) -> dict[str, str]:
    """Module -> digest of its file, for ``module`` and its transitive imports within the package."""
    package = module.rpartition(".")[0] or module
    waiting, found = [module], {}
    while waiting:
        name = waiting.pop()
        source = None if name in found else _file_of(sys.modules.get(name))
        if source is None:
            continue
        found[name] = hashlib.sha256(source).hexdigest()
        waiting += [other for other in _imports(sys.modules[name], source) if f"{other}.".startswith(f"{package}.")]
    return found


def _file_of(module: ModuleType | None) -> bytes | None:
    try:
        return Path(module.__file__ or "").read_bytes() if module is not None else None
    except (AttributeError, OSError):  # a built-in module, or one created at run time
        return None


def _imports(module: ModuleType, source: bytes) -> Iterator[str]:
    """Names that a module's source imports: modules, and some attributes of modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, module.__package__ or "") if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
