"""Reads the architecture of a configuration from ``transformers``' model, by names and by experiments.

An unsupported feature becomes a ``Gap``; an entry that is not read becomes a fixed entry, whose other values the
generated package refuses.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from archon_core.errors import ArchonError, ModelError
from archon_scaffold.models.architecture import Architecture, Gap
from archon_scaffold.models.blocks import read_attention, read_feed_forward, read_norms, read_query_key_norms
from archon_scaffold.models.fixed_entries import fixed_entries
from archon_scaffold.models.probes import same
from archon_scaffold.models.rotation import read_rotation
from archon_scaffold.models.source import HFSource
from archon_scaffold.models.stream import read_alike, read_logits, read_scores, read_stream
from archon_scaffold.models.tiny import is_dropout, tiny_entries, unknown_entries
from archon_scaffold.models.twin import ALTERNATIVES, Twin, build_twin

READERS = (
    read_norms,
    read_attention,
    read_query_key_norms,
    read_feed_forward,
    read_scores,
    read_rotation,
    read_stream,
    read_logits,
    read_alike,
)


def read_architecture(source: HFSource) -> tuple[Architecture, Twin]:
    """The architecture, and the small model that it was read from.

    Raises:
        ModelError: the model is not a Llama-like decoder.
    """
    lacking = [name for name in ("num_attention_heads", "rope_parameters") if not hasattr(source.config, name)]
    if lacking:
        raise ModelError(
            f"model type {source.model_type!r} is not a Llama-like decoder: its configuration has no "
            f"{' and no '.join(lacking)}; {ALTERNATIVES}"
        )
    try:
        return _read(source)
    except ArchonError:
        raise
    except Exception as error:  # whatever transformers raises where sizes of other architectures are asked of it
        raise ModelError(
            f"model type {source.model_type!r} is not a Llama-like decoder: reading its small model failed "
            f"({type(error).__name__}: {error}); {ALTERNATIVES}"
        ) from error


def _read(source: HFSource) -> tuple[Architecture, Twin]:
    twin = _small_twin(source)
    base = Architecture(
        model_type=source.model_type,
        causal_class=source.causal_class,
        critic=bool(source.critic_class),
        tiny=twin.entries,
        fixed={},
        norms={},
        root=twin.root,
        dropouts=tuple(filter(is_dropout, inspect.signature(type(source.config).__init__).parameters)),
    )
    found = base
    for read in READERS:
        found = read(found, twin)
    found = found.with_gaps(*_only_in_full_size(source, twin))
    fixed, unread = fixed_entries(source, twin.config, found)
    return replace(found, fixed=fixed).with_gaps(*unread), twin


def _small_twin(source: HFSource) -> Twin:
    """The small model, without entries that ``transformers`` does not know and that do not change its values."""
    tiny = tiny_entries(source.entries, source.config)
    twin = build_twin(tiny)
    unknown = unknown_entries(source.entries, source.config)
    if not unknown:
        return twin
    other = build_twin({**tiny, **unknown})
    alike = _forms_of_names(other.module) == _forms_of_names(twin.module)
    return twin if alike and same(other.trace["logits"], twin.trace["logits"]) else other


def _only_in_full_size(source: HFSource, twin: Twin) -> Iterator[Gap]:
    """A gap if layers of the full model have other parameters than those of the small one."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(copy.deepcopy(source.config))
    except Exception as error:  # whatever a constructor raises for entries that are missing or do not fit
        raise ModelError(
            f"transformers cannot build the {source.model_type} of this configuration ({error}); complete or correct it"
        ) from error
    other = sorted(_forms_of_names(whole) ^ _forms_of_names(twin.module))
    if other:
        shown = ", ".join(other[:6]) + (" and others" if len(other) > 6 else "")
        yield Gap("layer", f"in full size, some layers have other parameters than in a small model: {shown}")


def _forms_of_names(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False)
    return {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name, _ in named}
