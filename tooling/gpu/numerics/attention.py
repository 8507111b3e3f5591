"""Every attention backend against the formula in float64: outputs and gradients, grouped heads, windows; packs of
sequences and of prefix trees, whole and as ranks have them that gather keys and values.

Legend: T tokens with keys, Q tokens with queries, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings
from archon_engine.nn.attention import AttentionBackend, PackedAttention, load_backend
from gpu.numerics.comparing import relative_error, worst
from gpu.numerics.packs import LENGTHS, PACKS, Pack, sequences
from gpu.numerics.tolerances import BF16_KERNEL, FP32
from gpu.records import Check, Context, Outcome, Skipped

HEADS, KEY_HEADS, HEAD_DIM = 8, 2, 64
WINDOW = 50
SCALE = 0.2
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def checks(context: Context) -> Iterator[Check]:
    """The backends that need no compiler, and what torch's kernel does with grouped heads."""
    for backend in ("varlen", "sdpa"):
        for suffix in PACKS:
            yield from of_backend(context, backend, suffix)
    yield Check("attention-varlen-native-groups", partial(native_groups, context))


def of_backend(
    context: Context, backend: AttentionBackend, suffix: str = "", dtypes: Sequence[str] = tuple(DTYPES)
) -> Iterator[Check]:
    """One per type and window, on the pack with this suffix."""
    for name in dtypes:
        dtype = DTYPES[name]
        for window in (None, WINDOW):
            label = f"attention-{backend}-{name}{suffix}{'' if window is None else '-window'}"
            yield Check(label, partial(attend, context, backend, dtype, window, suffix))


def attend(
    context: Context, backend: AttentionBackend, dtype: torch.dtype, window: int | None, suffix: str = ""
) -> Outcome:
    """Outputs and gradients of a backend against ``formula`` on the same rounded inputs."""
    settings = AttentionSettings(scale=SCALE, window=window)
    if obstacles := load_backend(backend).obstacles(context.device, dtype, HEAD_DIM, (settings,)):
        raise Skipped("; ".join(obstacles))
    if backend == "flex":
        # Every check is a new graph of one function, of which torch compiles a few before it gives up.
        torch.compiler.reset()
    pack = PACKS[suffix](context.device)
    q, k, v, grad = _inputs(pack, context.device, dtype)
    attention = PackedAttention("0", settings)
    attention.backend = backend
    out = attention(q, k, v, pack.packed)
    return _compare(pack, out, (q, k, v), grad, window, BF16_KERNEL if dtype == torch.bfloat16 else FP32)


def native_groups(context: Context) -> Outcome:
    """Whether torch's kernel computes grouped heads by itself: torch 2.11 documents none, and Archon repeats heads."""
    if not context.on_gpu:
        raise Skipped("it needs a CUDA device, found cpu")
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    pack = sequences(context.device)
    q, k, v, grad = _inputs(pack, context.device, torch.bfloat16)
    ends = pack.packed.cu_seqlens
    option = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    longest = max(LENGTHS)
    try:
        out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=SCALE, window_size=(-1, 0), **option)
    except (RuntimeError, ValueError, TypeError) as error:
        raise Skipped(f"this torch's kernel takes no grouped heads ({error}); Archon repeats them") from error
    return _compare(pack, out, (q, k, v), grad, None, BF16_KERNEL)


def _inputs(pack: Pack, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, HEAD_DIM, generator=generator).to(device, dtype)

    queries, keys = pack.distances.shape
    q, k, v = (draw(*size).requires_grad_() for size in ((queries, HEADS), (keys, KEY_HEADS), (keys, KEY_HEADS)))
    return q, k, v, draw(queries, HEADS)


def _compare(
    pack: Pack, out: Tensor, inputs: tuple[Tensor, ...], grad: Tensor, window: int | None, bound: float
) -> Outcome:
    gradients = torch.autograd.grad(out, inputs, grad)
    exact = tuple(x.detach().cpu().double().requires_grad_() for x in inputs)
    expected = formula(*exact, pack.distances, scale=SCALE, window=window)
    exact_gradients = torch.autograd.grad(expected, exact, grad.cpu().double())
    measured = {
        "output": relative_error(out, expected),
        "gradients": worst(map(relative_error, gradients, exact_gradients)),
    }
    return Outcome(measured, dict.fromkeys(measured, bound))


def formula(q: Tensor, k: Tensor, v: Tensor, distances: Tensor, *, scale: float, window: int | None) -> Tensor:
    """softmax(scale q k^T) v over the keys that each query sees: [Q, Hq, D].

    Args:
        distances: [Q, T], see ``gpu.numerics.packs.Pack``.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = scale * q.transpose(0, 1) @ keys.mT
    seen = (distances >= 0) & (distances < (window or distances.shape[1]))
    return (scores.masked_fill(~seen, -math.inf).softmax(-1) @ values).transpose(0, 1)
