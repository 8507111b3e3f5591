"""Reading the tokenizer that lies beside a checkpoint, and saving one for every version of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archon_core.errors import ConfigError

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files of which a tokenizer has at least one."""


def read_tokenizer(folder: Path) -> Any:
    """The ``transformers`` tokenizer of a checkpoint folder. Raises ConfigError when there is none."""
    from transformers import AutoTokenizer

    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "no files"
    fix = "copy the model's tokenizer.json and tokenizer_config.json into the folder"
    # Without them transformers makes an empty tokenizer of the model's kind, which encodes any text to nothing.
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ConfigError(
            f"{folder}: found no tokenizer among {found}; allowed are {', '.join(VOCABULARY_FILES)}; {fix}"
        )
    try:
        # False, not None: transformers would ask whether to run Python files of the folder.
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types, plain Exception among them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder}: the tokenizer among {found} cannot be read ({reason}); {fix}") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """``save_pretrained`` under the names that ``transformers`` 4 reads, too.

    Version 5 writes a class that only it has, and the list of further special tokens under a name that means a mapping
    in version 4, which also puts no space before a text unless the configuration says so, whatever ``tokenizer.json``
    says. Version 5 reads all of these.
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
