"""Causal attention over packed sequences: each token attends to earlier tokens of its own sequence.

The module holds no weights. It stands apart from the projections because it alone needs whole sequences, which context
parallelism gives it, and because a backend can be chosen for the device. Every backend is one function of the same
form, in a file of its own under ``attention_backends``, imported when it is used.

Legend: T tokens, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

import importlib
from typing import Literal, Protocol, TypedDict, cast, get_args

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ConfigError, did_you_mean

AttentionBackend = Literal["varlen", "flex", "sdpa"]


class Attend(Protocol):
    """The function ``attend`` of a backend."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        *,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        """``q`` [T, Hq, D] over ``k`` and ``v`` [T, Hkv, D] to [T, Hq, D]; see ``PackedAttention`` for the rest."""


class _Options(TypedDict, total=False):
    scale: float
    window: int | None
    softcap: float | None


class PackedAttention(nn.Module):
    """Softmax attention, causal within each packed sequence. Query head i reads key head i // (Hq / Hkv).

    Attributes:
        layer: the layer's id, under which a cache keeps its keys and values.
        scale: factor on the scores.
        window: keys that a token sees, its own included; ``None`` for all earlier ones.
        softcap: scores s become ``softcap * tanh(s / softcap)``, as in Gemma 2 (arXiv:2408.00118, section 2); ``None``
            leaves them.
        backend: which implementation; ``None`` chooses by device and type at each call.
    """

    takes_cut_tokens = True

    def __init__(self, layer: str, *, scale: float, window: int | None = None, softcap: float | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.window = window
        self.softcap = softcap
        self.backend: AttentionBackend | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor:
        """Attend ``q`` [T, Hq, D] over ``k`` and ``v`` [T, Hkv, D], or over what ``packed.cache`` holds: [T, Hq, D].

        Where ``packed.context`` cuts the tokens, arguments and result are those of this rank's.
        """
        # What is not capped asks nothing of a cache or backend that knows no softcap.
        options: _Options = {"scale": self.scale, "window": self.window}
        if self.softcap is not None:
            options["softcap"] = self.softcap
        if packed.cache is not None:
            assert packed.context is None, "a cache holds whole sequences"
            return packed.cache.attend(self.layer, q, k, v, packed, **options)
        attend = _load(self.backend or choose_attention_backend(q.device.type, q.dtype, q.shape[-1], self.softcap))
        if packed.context is None:
            return attend(q, k, v, packed, **options)
        q, k, v = packed.context.gather_sequences(q, k, v)
        return packed.context.scatter_sequences(attend(q, k, v, packed, **options))

    def extra_repr(self) -> str:
        capped = "" if self.softcap is None else f", softcap={self.softcap:.4g}"
        options = f"scale={self.scale:.4g}, window={self.window}{capped}"
        return f"layer={self.layer}, {options}, backend={self.backend or 'auto'}"


def choose_attention_backend(
    device_type: str, dtype: torch.dtype, head_dim: int, softcap: float | None = None
) -> AttentionBackend:
    """The fastest that computes what is asked: ``varlen`` on CUDA in 16-bit types, ``flex`` on CUDA where scores are
    capped, which would take the memory of all scores elsewhere; else ``sdpa``, which computes everything."""
    if not varlen_obstacles(device_type, dtype, head_dim, softcap):
        return "varlen"
    return "flex" if softcap is not None and not flex_obstacles(device_type, dtype) else "sdpa"


def varlen_obstacles(device_type: str, dtype: torch.dtype, head_dim: int, softcap: float | None = None) -> list[str]:
    """Why torch's variable-length kernel cannot run, as phrases; empty when it can."""
    obstacles = []
    if softcap is not None:
        obstacles.append("it has no softcap, which the model's attention needs")
    if device_type != "cuda":
        obstacles.append(f"it needs a CUDA device, found {device_type}")
    if dtype not in (torch.bfloat16, torch.float16):
        obstacles.append(f"it computes in bfloat16 and float16, found {dtype}".replace("torch.", ""))
    if head_dim % 8 or head_dim > 256:
        obstacles.append(f"it needs a head dimension that is a multiple of 8 and at most 256, found {head_dim}")
    return obstacles


def flex_obstacles(device_type: str, dtype: torch.dtype) -> list[str]:
    """Why FlexAttention cannot run, as phrases; empty when it can."""
    if device_type != "cuda":
        # FlexAttention has no backward on the CPU (seen on torch 2.13).
        return [f"it needs a CUDA device, found {device_type}"]
    return ["it has no float64"] if dtype == torch.float64 else []


def check_attention_backend(
    name: str, device_type: str, dtype: torch.dtype, head_dim: int, softcap: float | None = None
) -> AttentionBackend:
    """``name`` as a backend that can run there.

    Raises:
        ConfigError: no backend has that name, or it cannot run on the device, in the type, with that head dimension or
            with a softcap.
    """
    allowed = get_args(AttentionBackend)
    if name not in allowed:
        raise ConfigError(f"attn_type: found {name!r}{did_you_mean(name, allowed)}; allowed are {', '.join(allowed)}")
    obstacles: list[str] = []
    if name == "varlen":
        obstacles = varlen_obstacles(device_type, dtype, head_dim, softcap)
    elif name == "flex":
        obstacles = flex_obstacles(device_type, dtype)
    if obstacles:
        raise ConfigError(f"attn_type {name!r} cannot be used: {'; '.join(obstacles)}; use attn_type sdpa")
    return cast(AttentionBackend, name)


def softcap_of(module: nn.Module) -> float | None:
    """The softcap of a ``PackedAttention`` in ``module``; ``None`` where no scores are capped."""
    caps = (part.softcap for part in module.modules() if isinstance(part, PackedAttention))
    return next((cap for cap in caps if cap is not None), None)


def set_attention_backend(module: nn.Module, name: AttentionBackend | None) -> None:
    """Set the backend of every ``PackedAttention`` in ``module``; ``None`` chooses at each call."""
    for part in module.modules():
        if isinstance(part, PackedAttention):
            part.backend = name


def _load(backend: AttentionBackend) -> Attend:
    return importlib.import_module(f"archon_engine.nn.attention_backends.{backend}").attend
