"""A decoder block in plain torch, compiled for one shape: what the device can do of such layers at best.

No packing, no parameters to gather, no optimizer, all sequences of one length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpu.speed.archon import DTYPE
from gpu.speed.shapes import Workload
from gpu.speed.timing import Timing, time_calls


class PlainBlock(nn.Module):
    """Grouped-query attention with normalised heads, rotary positions, and SwiGLU; pre-norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        h, f, self.head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        self.heads, self.key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (
            nn.Linear(i, o, bias=False)
            for i, o in (
                (h, self.heads * self.head_dim),
                (h, self.key_heads * self.head_dim),
                (h, self.key_heads * self.head_dim),
                (self.heads * self.head_dim, h),
                (h, f),
                (h, f),
                (f, h),
            )
        )
        self.attention_norm, self.mlp_norm = nn.RMSNorm(h), nn.RMSNorm(h)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[sequences, length, hidden] to the same."""
        y = self.attention_norm(x)
        q, k, v = (proj(y).unflatten(-1, (-1, self.head_dim)) for proj in (self.q, self.k, self.v))
        q, k = (_rotated(norm(z), cos, sin) for norm, z in ((self.q_norm, q), (self.k_norm, k)))
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).flatten(-2))
        y = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


def time_block(config: Mapping[str, Any], workload: Workload, device: str) -> Timing:
    """Forward and backward of one block, with the gradients of its weights and its input."""
    dtype = getattr(torch, DTYPE[device])
    block = PlainBlock(config).to(device, dtype)
    size = (workload.sequences, workload.length, config["hidden_size"])
    x = torch.randn(size, device=device, dtype=dtype, requires_grad=True)
    angles = torch.rand(workload.length, 1, config["head_dim"] // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    grad = torch.randn_like(x)
    compiled = torch.compile(block, dynamic=False)

    def step() -> None:
        block.zero_grad()
        x.grad = None
        compiled(x, cos, sin).backward(grad)

    return time_calls(step, device)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
