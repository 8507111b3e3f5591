"""transformers' own language model or classifier of a configuration, ready to be examined and taken apart."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from archon_core.errors import ModelError
from archon_models_hf.attention import IMPLEMENTATION, register

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ADVICE = (
    "use a model package that serves it, or write one: archon new model NAME (pip install archon-scaffold) creates it "
    "as a small Llama, with a PORTING.md that explains the next steps"
)
"""The fix for a model that this package cannot run. It does not mention ``--from-hf``, which reads Llama-like decoders
only: most models refused here are none."""

BY_LENGTH = ("dynamic", "longrope")
"""Rotations whose angles depend on the longest sequence of a call: packed with others, a sequence would get others."""


def prepared_config(config: PreTrainedConfig) -> tuple[PreTrainedConfig, float]:
    """A copy with our attention and without outputs that nobody reads; and the largest of its dropouts and the like,
    which a module that is never in training mode does not apply.

    Raises:
        ModelError: a rotation that looks at the lengths of other sequences.
    """
    for name, rotation in _rotations(config):
        if rotation.get("rope_type") in BY_LENGTH:
            raise ModelError(
                f"{config.model_type} configuration: found {name} of rope_type {rotation['rope_type']!r}, whose angles "
                "depend on the longest sequence of a call, so that packing would change numbers; allowed are "
                "rotations that do not, such as default, linear, llama3 and yarn; give one of them, or use a model "
                "package that rotates every sequence by its own length (archon models)"
            )
    ready = copy.deepcopy(config)
    ready._attn_implementation = IMPLEMENTATION
    random = [
        float(value)
        for name, value in vars(ready).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and _is_random(name)
    ]
    ready.use_cache = False
    for name in ("output_router_logits", "output_attentions", "output_hidden_states"):
        if getattr(ready, name, False):
            setattr(ready, name, False)
    return ready, max(random, default=0.0)


def build_transformers(config: PreTrainedConfig, *, critic: bool) -> PreTrainedModel:
    """transformers' model of a prepared configuration, on the current device, its weights as they come.

    Raises:
        ModelError: transformers has no such model, or cannot build it.
    """
    from transformers.initialization import no_init_weights
    from transformers.models.auto import modeling_auto

    register()
    mapping = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if critic else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in mapping:
        what = "sequence classification, which critics are saved as" if critic else "causal language modelling"
        raise ModelError(
            f"model_type {config.model_type!r}: found no class for {what} in transformers {_version()}; "
            + ("train a critic of another family" if critic else "give a configuration of a causal language model")
        )
    found: Any = mapping[type(config)]
    model_class = found[0] if isinstance(found, tuple) else found
    try:
        with no_init_weights():
            return model_class(_with_one_label(config) if critic else config).eval()
    except KeyError as error:
        if error.args != (config._attn_implementation,):
            raise
        raise ModelError(
            f"model_type {config.model_type!r}: attention in {model_class.__name__} of transformers {_version()} does "
            "not go through transformers' attention interface, so packed sequences cannot be run through it; "
            f"{ADVICE}"
        ) from error
    except Exception as error:  # transformers raises its own types, torch's and Python's
        raise ModelError(
            f"model_type {config.model_type!r}: transformers {_version()} cannot build {model_class.__name__} with our "
            f"attention: {type(error).__name__}: {error}"
        ) from error


def _with_one_label(config: PreTrainedConfig) -> PreTrainedConfig:
    single = copy.deepcopy(config)
    single._attn_implementation = config._attn_implementation
    single.num_labels = 1
    return single


def _rotations(config: PreTrainedConfig) -> list[tuple[str, dict[str, Any]]]:
    """The configuration's rotations: one, or one for each kind of layer."""
    entries = getattr(config, "rope_parameters", None)
    if not isinstance(entries, dict):
        return []
    if "rope_type" in entries:
        return [("rope_parameters", entries)]
    return [(f"rope_parameters.{kind}", each) for kind, each in entries.items() if isinstance(each, dict)]


def _is_random(name: str) -> bool:
    """Whether it is a probability or size of noise in training. What classifiers alone have is not there."""
    return ("dropout" in name and "classif" not in name) or name.endswith("_pdrop") or "jitter" in name


def _version() -> str:
    import transformers

    return transformers.__version__
