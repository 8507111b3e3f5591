"""Reads the tokenizer of a checkpoint folder, and saves tokenizers so that transformers 4 and 5 can read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archon_core.errors import ConfigError

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Every tokenizer has at least one of these files."""


def read_tokenizer(folder: Path) -> Any:
    """The ``transformers`` tokenizer of a checkpoint folder. Raises ConfigError if it is missing or unreadable."""
    from transformers import AutoTokenizer

    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "no files"
    fix = "copy the model's tokenizer.json and tokenizer_config.json into the folder"
    # Without them transformers makes an empty tokenizer of the model's kind, which encodes any text to nothing.
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ConfigError(
            f"{folder}: found no tokenizer among {found}; allowed are {', '.join(VOCABULARY_FILES)}; {fix}"
        )
    try:
        # False, not None, with which transformers would ask the user whether to run Python files of the folder.
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types, plain Exception among them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder}: cannot read the tokenizer among {found} ({reason}); {fix}") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer with ``save_pretrained``, then rewrite the entries that only ``transformers`` 5 can read.

    - ``tokenizer_class``: version 5 writes a class that version 4 lacks.
    - ``extra_special_tokens``: a list in version 5, a mapping in version 4.
    - ``add_prefix_space``: version 4 ignores the setting in ``tokenizer.json``.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    if entries.get("tokenizer_class") == "TokenizersBackend":
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(entries.get("extra_special_tokens"), list):
        further = entries.pop("extra_special_tokens")
        if further:
            entries["additional_special_tokens"] = further
    whole = folder / "tokenizer.json"
    splitting = json.loads(whole.read_text(encoding="utf-8")).get("pre_tokenizer") if whole.is_file() else None
    if splitting and splitting.get("add_prefix_space"):
        entries.setdefault("add_prefix_space", True)
    file.write_text(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
