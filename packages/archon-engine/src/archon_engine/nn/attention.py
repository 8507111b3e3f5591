"""Causal attention over packed sequences: each token attends to earlier tokens of its own sequence.

``PackedAttention`` holds no weights. It is separate from the projections for two reasons: only it needs whole
sequences, so context parallelism exchanges data around it, and its backend depends on the device. Backends are modules
of ``attention_backends``, imported when first used.

Legend: T tokens, Hq query heads, Hkv key and value heads, D head dimension, Dv that of values.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from archon_core.contracts.module import InitialValue
from archon_core.contracts.packed import AttentionSettings, ContextRanks, PackedSequences
from archon_core.errors import ConfigError, did_you_mean
from archon_engine.nn.tensor_parallel import local_weight

AttentionBackend = Literal["varlen", "flex", "sdpa"]


class Backend(Protocol):
    """A module of ``attention_backends``."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend ``q`` [T, Hq, D] over ``k`` [T, Hkv, D] and ``v`` [T, Hkv, Dv], with ``sinks`` [Hq] if the settings
        have any. Returns [T, Hq, Dv].

        ``q`` may have fewer rows: those of the last tokens of the pack, where the first sequence has all others, or
        those of ``packed.shared.queries``.
        """

    def obstacles(
        self, device_type: str, dtype: torch.dtype, head_dim: int, settings: Collection[AttentionSettings]
    ) -> list[str]:
        """Reasons why the backend cannot compute ``settings``, those of all layers, as phrases; empty if it can."""


class PackedAttention(nn.Module):
    """Softmax attention, causal within each packed sequence. Query head i reads key head i // (Hq / Hkv).

    Attributes:
        layer: the layer's id, under which a cache keeps its keys and values.
        settings: scale, window, softcap and sinks.
        backend: name of the implementation; ``None`` chooses by device and dtype at each call.
    """

    accepts_sequence_shards = True
    accepts_any_order = True
    # Exchanges in flight cannot be inside of compiled graphs, and lengths differ from batch to batch.
    eager_methods = ("forward", "_send")

    def __init__(self, layer: str, settings: AttentionSettings) -> None:
        super().__init__()
        self.layer = layer
        self.settings = settings
        self.backend: AttentionBackend | None = None

    def send_queries(self, q: Tensor, packed: PackedSequences) -> Any:
        """Hand over queries [T, Hq, D] before keys and values are projected, so that context ranks exchange them
        meanwhile. Optional. Collective. Pass the result to ``forward`` exactly once, as its ``q``."""
        return q if packed.context is None else self._send(q, packed.context)

    def _send(self, q: Tensor, context: ContextRanks) -> Any:
        return context.send_queries(q)

    def forward(self, q: Any, k: Tensor, v: Tensor, packed: PackedSequences, sinks: Tensor | None = None) -> Tensor:
        """Attend ``q`` [T, Hq, D] over ``k`` [T, Hkv, D] and ``v`` [T, Hkv, Dv], or over what ``packed.cache`` holds:
        [T, Hq, Dv].

        With ``packed.context``, arguments and result contain this rank's tokens only, and ``sinks`` those of all heads.

        Args:
            q: queries, or what ``send_queries`` returned for them.
            k: keys.
            v: values, whose heads may have another size.
            packed: the pack.
            sinks: [Hq], from ``AttentionSinks``, if the settings have any.
        """
        assert (sinks is not None) == self.settings.sinks, "sinks go with settings.sinks"
        if packed.cache is not None:
            assert packed.context is None, "a cache holds whole sequences"
            # Caches of other packages need the argument only for models with sinks.
            of_heads = () if sinks is None else (sinks,)
            return packed.cache.attend(self.layer, q, k, v, packed, self.settings, *of_heads)
        name = self.backend or choose_attention_backend(k.device.type, k.dtype, k.shape[-1], self.settings)
        backend = load_backend(name)
        if packed.context is None:
            return backend.attend(q, k, v, packed, self.settings, sinks)
        return packed.context.attend(backend, q, k, v, packed, self.settings, sinks)

    def extra_repr(self) -> str:
        return f"layer={self.layer}, {self.settings}, backend={self.backend or 'auto'}"


class AttentionSinks(nn.Module):
    """The sinks of a layer's heads (``AttentionSettings.sinks``), with role ``column``: a rank has those of its heads.

    Attributes:
        weight: [Hq], the sinks' scores.
    """

    initial_values: ClassVar[Mapping[str, InitialValue]] = {"weight": "normal"}

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads))

    def forward(self) -> Tensor:
        """The scores of this rank's heads."""
        return local_weight(self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}"


def choose_attention_backend(
    device_type: str, dtype: torch.dtype, head_dim: int, settings: AttentionSettings
) -> AttentionBackend:
    """The fastest backend that can compute ``settings``.

    That is ``varlen`` on CUDA in 16-bit types, ``flex`` on CUDA if scores are capped or heads have sinks, and otherwise
    ``sdpa``, which computes everything, but in these cases keeps scores for backward: of a sequence [Hq, L, K], where K
    are the keys that at most 1,024 queries see together.
    """
    of_call = (device_type, dtype, head_dim, (settings,))
    if not load_backend("varlen").obstacles(*of_call):
        return "varlen"
    special = settings.softcap is not None or settings.sinks
    return "flex" if special and not load_backend("flex").obstacles(*of_call) else "sdpa"


def check_attention_backend(
    name: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    settings: Collection[AttentionSettings] = (),
    *,
    option: str = "archon.attn_type",
) -> AttentionBackend:
    """Check that backend ``name`` exists and can compute ``settings`` on that device; returns it.

    Args:
        option: dotted name of the option, for messages.

    Raises:
        ConfigError: no backend has that name, or it does not support the device, the dtype, the head dimension or one
            of the settings.
    """
    allowed = get_args(AttentionBackend)
    if name not in allowed:
        raise ConfigError(f"{option}: found {name!r}{did_you_mean(name, allowed)}; allowed are {', '.join(allowed)}")
    backend = cast(AttentionBackend, name)
    obstacles = load_backend(backend).obstacles(device_type, dtype, head_dim, settings)
    if obstacles:
        raise ConfigError(f"{option}: found {name!r}, which cannot run here: {'; '.join(obstacles)}; use sdpa")
    return backend


def attention_settings(module: nn.Module) -> tuple[AttentionSettings, ...]:
    """The settings of every ``PackedAttention`` in ``module``, each once."""
    found = (part.settings for part in module.modules() if isinstance(part, PackedAttention))
    return tuple(dict.fromkeys(found))


def set_attention_backend(module: nn.Module, name: AttentionBackend | None) -> None:
    """Set the backend of every ``PackedAttention`` in ``module``; ``None`` chooses at each call."""
    for part in module.modules():
        if isinstance(part, PackedAttention):
            part.backend = name


def load_backend(name: AttentionBackend) -> Backend:
    """Import a backend's module."""
    return cast(Backend, importlib.import_module(f"archon_engine.nn.attention_backends.{name}"))
