"""Reads the source of ``--from-hf``: a ``config.json``, a checkpoint folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.errors import ModelError
from archon_engine.models.hf_config import architecture_name, checkpoint_folder, load_hf_config

_ALLOWED = "a config.json, a folder that holds one, or a hub id (owner/name)"

MINIMAL: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
"""The configuration of a package without ``--from-hf``."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class HFSource:
    """A configuration, raw and as ``transformers`` reads it.

    Attributes:
        entries: of the ``config.json``, ``model_type`` among them.
        config: the ``transformers`` configuration.
        causal_class: ``transformers``' class for the language model.
        critic_class: its sequence classification class, in whose format critics are saved; empty if there is none.
    """

    entries: Mapping[str, Any]
    config: Any
    causal_class: str
    critic_class: str

    @property
    def model_type(self) -> str:
        """The model type of the configuration."""
        return self.entries["model_type"]


def read_source(source: str | None) -> HFSource:
    """Read a source; ``None`` gives a small Llama.

    Raises:
        ModelError: the source is not a configuration, or ``transformers`` has no causal language model of its type.
    """
    entries = dict(MINIMAL) if source is None else _entries(source)
    _refuse_values(entries, source)
    config = load_hf_config(entries)
    _refuse_parts(config, source)
    try:
        causal = architecture_name(config.model_type, critic=False)
    except ModelError as error:
        raise ModelError(
            f"{source}: found model_type {config.model_type!r}, but transformers has no causal language model of that "
            "type; give the configuration of one"
        ) from error
    try:
        critic = architecture_name(config.model_type, critic=True)
    except ModelError:
        critic = ""
    return HFSource({**entries, "model_type": config.model_type}, config, causal, critic)


def _refuse_values(entries: Mapping[str, Any], source: str | None) -> None:
    """Raise for values that no package can support."""
    if quantised := entries.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise ModelError(
            f"{source}: found quantization_config (quant_method {method!r}); allowed is none, since models are trained "
            "on plain weights; give the config.json of the original checkpoint, or leave the entry out"
        )
    small = [
        f"{name} {value!r}"
        for name in SIZES
        if isinstance(value := entries.get(name), (int, float)) and not isinstance(value, bool) and value < 1
    ]
    if small:
        raise ModelError(f"{source}: found {', '.join(small)}; allowed are sizes from 1; correct the config.json")


def _refuse_parts(config: Any, source: str | None) -> None:
    """Raise for a composite configuration: a language model and other parts."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        text = config.get_text_config()
    except ValueError:  # transformers finds several
        text = None
    if text is config:
        return
    found = f"{source}: found {config.model_type!r}, which holds "
    if text is None:
        raise ModelError(f"{found}several language models beside other parts; give the configuration of one")
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{found}a text model (model_type {text.model_type!r}) beside other parts, but transformers has no causal "
            "language model of that type; give the configuration of one"
        )
    raise ModelError(
        f"{found}a language model beside other parts; write its text_config (model_type {text.model_type!r}) to a "
        "separate config.json"
    )


def _entries(source: str) -> dict[str, Any]:
    if not source.strip():
        raise ModelError(f"--from-hf: found {source!r}; give {_ALLOWED}, or leave --from-hf out for a small Llama")
    path = Path(source).expanduser()
    if not path.is_file():
        try:
            path = checkpoint_folder(source, weights=False) / "config.json"
        except ModelError as error:
            raise ModelError(f"--from-hf: {error}; allowed are {_ALLOWED}") from error
    if not path.is_file():
        raise ModelError(f"{source}: found no config.json in that folder; give one, or a folder that holds one")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: found no readable JSON ({error}); give a Hugging Face config.json") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("model_type"), str):
        raise ModelError(f"{path}: found no model_type; give a Hugging Face config.json")
    return entries
