"""Packed attention by torch's variable-length kernel: CUDA, 16-bit types, no padding and no mask at all."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_core.errors import ConfigError
from archon_engine.nn.attention_backends.paths import gather_paths
from archon_engine.nn.ulysses import replicate_heads


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    settings: AttentionSettings,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``archon_engine.nn.attention.Backend``.

    Raises:
        ConfigError: the model needs a window that the installed torch's kernel lacks, a softcap or sinks.
    """
    scale, window = settings.scale, settings.window
    if settings.softcap is not None:
        raise ConfigError(
            f"attn_type 'varlen': found a softcap of {settings.softcap:g}, which this kernel lacks; use flex or sdpa"
        )
    if sinks is not None:
        raise ConfigError("attn_type 'varlen': found attention sinks, which this kernel lacks; use flex or sdpa")
    from torch.nn.attention.varlen import varlen_attn

    options = _options(varlen_attn)
    arguments: dict[str, object] = {}
    if "scale" in options:
        arguments["scale"] = scale
    elif abs(scale * q.shape[-1] ** 0.5 - 1.0) > 1e-6:
        q = q * (scale * q.shape[-1] ** 0.5)
    if "window_size" in options:
        # Number of keys to the left of a token, besides its own; -1 is no limit.
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None or window >= packed.max_seqlen:
        arguments["is_causal"] = True
    else:
        raise ConfigError("attn_type 'varlen': found a sliding window, which this torch's kernel lacks; use sdpa")
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" in options:
        arguments["enable_gqa"] = True
    elif groups > 1:
        # torch 2.11 has no such option and documents equal head counts only. Remove with support for 2.11.
        k, v = replicate_heads(k, groups), replicate_heads(v, groups)
    # Where the numbers of queries and keys differ, the kernel aligns causal masks and windows to the last query and the
    # last key: torch calls it so itself for ``causal_lower_right`` (torch 2.11 to 2.13, ``torch.nn.attention.bias``).
    ends, longest = packed.cu_seqlens, packed.max_seqlen
    key_ends, longest_query = ends, longest
    if packed.shared is not None:
        # Queries of a segment, keys of the path to its end.
        k, v = (gather_paths(x, packed.shared.key_tokens) for x in (k, v))
        key_ends, longest_query = packed.shared.cu_keys, max(packed.lengths)
    elif n_before := k.shape[0] - q.shape[0]:
        ends = (key_ends - n_before).clamp(min=0)
        longest_query = max(packed.lengths[0] - n_before, *packed.lengths[1:], 0)
    value_dim = v.shape[-1]
    if value_dim < q.shape[-1]:
        # The kernel takes heads of one size; zeros in values add zeros to outputs.
        v = functional.pad(v, (0, q.shape[-1] - value_dim))
    out = varlen_attn(q, k, v, ends, key_ends, longest_query, longest, **arguments)
    return out if value_dim >= q.shape[-1] else out[..., :value_dim]


def obstacles(
    device_type: str, dtype: torch.dtype, head_dim: int, settings: Collection[AttentionSettings]
) -> list[str]:
    """See ``archon_engine.nn.attention.Backend``."""
    found = []
    if any(one.softcap is not None for one in settings):
        found.append("it has no softcap, which the model's attention needs")
    if any(one.sinks for one in settings):
        found.append("it has no attention sinks, which the model's attention needs")
    if device_type != "cuda":
        found.append(f"it needs a CUDA device, found {device_type}")
    if dtype not in (torch.bfloat16, torch.float16):
        found.append(f"it computes in bfloat16 and float16, found {dtype}".replace("torch.", ""))
    if head_dim % 8 or head_dim > 256:
        found.append(f"it needs a head dimension that is a multiple of 8 and at most 256, found {head_dim}")
    return found


@cache
def _options(function: object) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)  # type: ignore[arg-type]
