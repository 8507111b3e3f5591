"""Every attention backend against the formula in float64: outputs and gradients, ragged packs, grouped heads, windows.

Legend: T tokens, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.attention import AttentionBackend, PackedAttention, load_backend
from gpu.numerics.comparing import relative_error, worst
from gpu.numerics.tolerances import BF16_KERNEL, FP32
from gpu.records import Check, Context, Outcome, Skipped

LENGTHS = (1, 130, 7, 64, 257, 33)
HEADS, KEY_HEADS, HEAD_DIM = 8, 2, 64
WINDOW = 50
SCALE = 0.2
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def checks(context: Context) -> Iterator[Check]:
    """The backends that need no compiler, and what torch's kernel does with grouped heads."""
    for backend in ("varlen", "sdpa"):
        yield from of_backend(context, backend)
    yield Check("attention-varlen-native-groups", partial(native_groups, context))


def of_backend(context: Context, backend: AttentionBackend) -> Iterator[Check]:
    """One per type and window."""
    for name, dtype in DTYPES.items():
        for window in (None, WINDOW):
            label = f"attention-{backend}-{name}{'' if window is None else '-window'}"
            yield Check(label, partial(attend, context, backend, dtype, window))


def attend(context: Context, backend: AttentionBackend, dtype: torch.dtype, window: int | None) -> Outcome:
    """Outputs and gradients of a backend against ``formula`` on the same rounded inputs."""
    settings = AttentionSettings(scale=SCALE, window=window)
    if obstacles := load_backend(backend).obstacles(context.device, dtype, HEAD_DIM, (settings,)):
        raise Skipped("; ".join(obstacles))
    q, k, v, grad = _inputs(context.device, dtype)
    packed = PackedSequences.from_lengths(LENGTHS, context.device)
    attention = PackedAttention("0", settings)
    attention.backend = backend
    out = attention(q, k, v, packed)
    return _compare(out, (q, k, v), grad, window, BF16_KERNEL if dtype == torch.bfloat16 else FP32)


def native_groups(context: Context) -> Outcome:
    """Whether torch's kernel computes grouped heads by itself: torch 2.11 documents none, and Archon repeats heads."""
    if not context.on_gpu:
        raise Skipped("it needs a CUDA device, found cpu")
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    q, k, v, grad = _inputs(context.device, torch.bfloat16)
    packed = PackedSequences.from_lengths(LENGTHS, context.device)
    option = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    longest = max(LENGTHS)
    try:
        out = varlen_attn(
            q, k, v, packed.cu_seqlens, packed.cu_seqlens, longest, longest, scale=SCALE, window_size=(-1, 0), **option
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise Skipped(f"this torch's kernel takes no grouped heads ({error}); Archon repeats them") from error
    return _compare(out, (q, k, v), grad, None, BF16_KERNEL)


def _inputs(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)

    def draw(heads: int) -> Tensor:
        return torch.randn(total, heads, HEAD_DIM, generator=generator).to(device, dtype)

    q, k, v = (draw(heads).requires_grad_() for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    return q, k, v, draw(HEADS)


def _compare(out: Tensor, inputs: tuple[Tensor, ...], grad: Tensor, window: int | None, bound: float) -> Outcome:
    gradients = torch.autograd.grad(out, inputs, grad)
    exact = tuple(x.detach().cpu().double().requires_grad_() for x in inputs)
    expected = formula(*exact, scale=SCALE, window=window)
    exact_gradients = torch.autograd.grad(expected, exact, grad.cpu().double())
    measured = {
        "output": relative_error(out, expected),
        "gradients": worst(map(relative_error, gradients, exact_gradients)),
    }
    return Outcome(measured, dict.fromkeys(measured, bound))


def formula(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
    """softmax(scale q k^T) v, sequence by sequence: [T, Hq, D]."""
    group, outputs = q.shape[1] // k.shape[1], []
    for part_q, part_k, part_v in zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True):
        keys, values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (part_k, part_v))
        scores = scale * part_q.transpose(0, 1) @ keys.mT
        places = torch.arange(part_q.shape[0])
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < (window or len(places)))
        outputs.append((scores.masked_fill(~seen, -math.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs)
