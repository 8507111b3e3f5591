"""Packed attention by torch's variable-length kernel: CUDA, 16-bit types, no padding and no mask at all."""

from __future__ import annotations

import inspect
from functools import cache

from torch import Tensor

from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ConfigError
from archon_engine.nn.ulysses import replicate_heads


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: PackedSequences,
    *,
    scale: float,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """See ``archon_engine.nn.attention.Attend``.

    Raises:
        ConfigError: the model needs a window, which the installed torch's kernel lacks, or scores are to be capped.
    """
    if softcap is not None:
        raise ConfigError(
            f"attn_type 'varlen': found a softcap of {softcap:g}, which this kernel lacks; use attn_type flex or sdpa"
        )
    from torch.nn.attention.varlen import varlen_attn

    options = _options(varlen_attn)
    arguments: dict[str, object] = {}
    if "scale" in options:
        arguments["scale"] = scale
    elif abs(scale * q.shape[-1] ** 0.5 - 1.0) > 1e-6:
        q = q * (scale * q.shape[-1] ** 0.5)
    if "window_size" in options:
        # Keys to the left of a token beside its own; -1 is no limit.
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None or window >= packed.max_seqlen:
        arguments["is_causal"] = True
    else:
        raise ConfigError(
            "attn_type 'varlen': found a sliding window, which this torch's kernel does not have; use attn_type sdpa"
        )
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" in options:
        arguments["enable_gqa"] = True
    elif groups > 1:
        # torch 2.11 has no such option and documents equal head counts only. Remove with support for 2.11.
        k, v = replicate_heads(k, groups), replicate_heads(v, groups)
    cu_seqlens, longest = packed.cu_seqlens, packed.max_seqlen
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **arguments)


@cache
def _options(function: object) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)  # type: ignore[arg-type]
