"""Packed attention by torch's variable-length kernel: CUDA, 16-bit types, no padding and no mask at all."""

from __future__ import annotations

import inspect
from functools import cache

from torch import Tensor

from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ConfigError


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
        ConfigError: the installed torch has no window or no grouped heads in this kernel and the model needs them, or
            scores are to be capped.
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
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in options:
            arguments["enable_gqa"] = True
        else:
            raise ConfigError(
                "attn_type 'varlen': found fewer key heads than query heads, which this torch's kernel does not "
                "support; use attn_type sdpa"
            )
    cu_seqlens, longest = packed.cu_seqlens, packed.max_seqlen
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **arguments)


@cache
def _options(function: object) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)  # type: ignore[arg-type]
