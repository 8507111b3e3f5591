"""Reads a model's configuration as ``transformers`` does: from a folder, the hub's cache or an inline mapping."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.errors import ConfigError, ModelError, did_you_mean
from archon_core.models.json_file import read_entries
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.models.rope_entries import older_rope_entries, repeats_rope_value

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from archon_core.contracts.engine_config import EngineConfig

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "none")

_METADATA = frozenset(
    [
        "auto_map",
        "cache_implementation",
        "ignore_keys_at_rope_validation",
        "is_llama_config",
        "model_type",  # a part of a composite keeps it as an entry
        "name_or_path",
        "torch_dtype",
        "unsloth_fixed",
        "unsloth_version",
    ]
)
"""Entries that do not affect numbers: tools leave them in ``config.json``, or classes of transformers set them."""

_IMPLEMENTATIONS = tuple(f"{prefix}{part}_implementation" for part in ("attn", "experts") for prefix in ("", "_"))
"""Entries that choose the code of a part, removed on reading: transformers 5 accepts a hub id here, and would fetch and
run compiled code from it."""


def load_hf_config(source: str | Path | Mapping[str, Any]) -> PreTrainedConfig:
    """A ``transformers`` configuration; of a composite with a vision encoder, that of its language model if this is a
    model by itself (``language_model_config``).

    Args:
        source: a folder with ``config.json``, a hub id, or the content of a ``config.json``.

    Raises:
        ModelError: there is no configuration, it is not valid, or ``transformers`` does not know its ``model_type``.
    """
    if isinstance(source, Mapping):
        return _from_entries(dict(source), "model_config")
    file = checkpoint_folder(source, weights=False) / "config.json"
    if not file.is_file():
        raise ModelError(
            f"model path {str(source)!r}: found no config.json in {file.parent}; give a Hugging Face checkpoint folder"
        )
    config = _from_entries(read_entries(file), str(file))
    config.name_or_path = str(source)
    return config


def model_type_of(config: EngineConfig, *, role: str) -> str:
    """The ``model_type`` of the model that ``config`` names. Collective, since a hub id may have to be fetched.

    Raises:
        ConfigError: neither or both of ``path`` and ``model_config`` name one.
        ModelError: as ``load_hf_config`` does, on every rank.
    """
    return read_source(config, role=role).model_type


def read_source(config: EngineConfig, *, role: str) -> PreTrainedConfig:
    """The ``transformers`` configuration of the model that ``config`` names. Raises as ``model_type_of`` does."""
    if (config.path is None) == (config.model_config is None):
        found = "neither" if config.path is None else "both"
        raise ConfigError(
            f"{role}.path and {role}.model_config: found {found}; exactly one must be set: path to a checkpoint "
            "folder or hub id, or model_config to a Hugging Face configuration (for random weights)"
        )
    with failing_together(Ranks.of_process_group()):
        return load_hf_config(config.model_config if config.model_config is not None else config.path)


def _from_entries(entries: dict[str, Any], where: str) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    for name in _IMPLEMENTATIONS:
        entries.pop(name, None)
    model_type = entries.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ModelError(f"{where}: found no model_type; name the architecture, such as model_type: qwen3")
    if model_type not in CONFIG_MAPPING:
        import transformers

        raise ModelError(
            f"{where}: model_type {model_type!r} is unknown to transformers {transformers.__version__}"
            f"{did_you_mean(model_type, list(CONFIG_MAPPING))}; upgrade transformers if a newer version knows it "
            "(Archon never runs code from the hub)"
        )
    try:
        return language_model_config(AutoConfig.for_model(model_type, **entries))
    except Exception as error:  # transformers raises its validators' own types, KeyError and others
        raise ModelError(
            f"{where}: transformers refuses this {model_type} configuration: {error}; correct that entry"
            f"{_quoted_values(entries)}"
        ) from error


def language_model_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the language model in a composite of modalities, if transformers' causal language model of
    both types is the same class, as for qwen3_5; otherwise ``config`` itself."""
    text = getattr(config, "text_config", None)
    if text is None:
        return config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    of_text = CLASSES.get(text.model_type)
    return text if of_text is not None and of_text == CLASSES.get(config.model_type) else config


def _quoted_values(entries: Mapping[str, Any]) -> str:
    """A hint about booleans and nulls in quotes, the usual cause of a wrong type."""
    texts = [name for name, value in entries.items() if isinstance(value, str) and value.lower() in _YAML_WORDS]
    return f" ({', '.join(texts)}: write true, false or null, without quotes)" if texts else ""


def checkpoint_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a checkpoint: ``path`` itself, or the folder of the hub id ``path`` in the hub's cache.

    Args:
        weights: fetch weight files too when the id is not in the cache.

    Raises:
        ModelError: there is no such folder, and the hub has no such id or cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path, Path) or not _HUB_ID.fullmatch(path) or path.startswith("."):
        raise ModelError(
            f"model path {str(path)!r}: found no such folder; give a checkpoint folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=[*_OTHER_FILES, *(_WEIGHT_FILES if weights else ())]))
    except Exception as error:  # the hub client raises its own types and those of its HTTP library
        raise ModelError(
            f"model path {path!r}: found no such folder, and cannot read it as a hub id "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); give an existing folder, or check the id, "
            "the network and HF_TOKEN"
        ) from error


def refuse_unknown_entries(config: PreTrainedConfig, honoured: Collection[str] = ()) -> None:
    """Raise for entries that neither ``transformers`` nor the model package knows: ignoring one may change numbers.

    Accepts entries that are empty, false or null, begin with an underscore, are known metadata, or repeat a value of
    ``rope_parameters`` under the same name.

    Args:
        honoured: names that the model package reads in addition to those of the ``transformers`` class.

    Raises:
        ModelError: naming every such entry, with the nearest known name.
    """
    from transformers import PreTrainedConfig

    known = set(inspect.signature(type(config).__init__).parameters) | set(vars(PreTrainedConfig())) | set(honoured)
    # The names under which transformers keeps entries that it declares under others.
    known |= {kept for declared, kept in config.attribute_map.items() if declared in known}
    unknown = {
        name: value
        for name, value in vars(config).items()
        if name not in known | _METADATA and not name.startswith("_") and value and not repeats_rope_value(config, name)
    }
    if getattr(config, "is_causal", True) is False:
        unknown["is_causal"] = False
    if unknown:
        lines = [f"{name} = {value!r}{did_you_mean(name, sorted(known))}" for name, value in unknown.items()]
        raise ModelError(
            f"{config.model_type} configuration: found entries that have no known meaning for this architecture:\n  "
            + "\n  ".join(lines)
            + "\nleave them out if they do not change what the model computes"
        )


def architecture_name(model_type: str, *, critic: bool) -> str:
    """The class under which ``transformers`` loads a saved model, such as ``Qwen3ForCausalLM``.

    Raises:
        ModelError: ``transformers`` has no such class for ``model_type``.
    """
    from transformers.models.auto import modeling_auto

    names = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        if critic
        else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    if model_type not in names:
        kind = "sequence-classification" if critic else "causal language"
        raise ModelError(
            f"model_type {model_type!r}: transformers has no {kind} model of this type; save with format dcp instead"
        )
    return names[model_type]


def config_file(config: PreTrainedConfig, *, critic: bool, dtype: str) -> str:
    """The content of ``config.json`` beside saved weights.

    It contains the entries that ``transformers`` 5 writes. Version 4, vLLM and SGLang look for rotary settings, the
    dtype, and entries that version 5 has renamed (such as ``num_experts``) under other names; these are added.
    ``auto_map`` is left out, because it names Python files that are not saved.
    """
    saved = config_to_save(config, critic=critic, dtype=dtype)
    entries = json.loads(saved.to_json_string())
    entries.pop("auto_map", None)
    aliases = {old: entries[new] for old, new in saved.attribute_map.items() if new in entries}
    entries = {**aliases, **entries, "torch_dtype": dtype, **older_rope_entries(saved)}
    return json.dumps(entries, indent=2, sort_keys=True) + "\n"


def config_to_save(config: PreTrainedConfig, *, critic: bool, dtype: str) -> PreTrainedConfig:
    """A copy of ``config`` that describes the saved weights: architecture, dtype, and one label for a critic. They are
    plain weights, also if ``config`` is that of a quantised checkpoint."""
    import copy

    saved = copy.deepcopy(config)
    saved.architectures = [architecture_name(config.model_type, critic=critic)]
    saved.dtype = dtype
    vars(saved).pop("quantization_config", None)
    if critic:
        saved.num_labels = 1
    return saved
