"""Reading the tokenizer that lies beside a checkpoint."""

from __future__ import annotations

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
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers and tokenizers raise many types, plain Exception among them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder}: the tokenizer among {found} cannot be read ({reason}); {fix}") from error
