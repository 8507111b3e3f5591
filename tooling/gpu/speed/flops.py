"""Operations of a training step, and what a device can do of them.

A step takes 6 operations per token and weight of a matrix product: 2 forward, 4 backward. Attention adds
6 x heads x head_dim x length per token and layer: two products with length / 2 keys on average, since it is causal, and
twice that backward. The head counts, an embedding does not; with experts, those count that a token goes to.
Recomputation does not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
)
"""Part of a device's name -> operations per second in dense bf16 with fp32 sums, from the maker's data sheet. The first
that fits counts."""

PROBE = {"cuda": 8192, "cpu": 512}
"""Size of the square product that is measured where the table has no entry."""


def per_token(config: Mapping[str, Any], length: int) -> float:
    """Operations per token of sequences of ``length`` tokens, forward and backward."""
    h, head_dim, heads = config["hidden_size"], config["head_dim"], config["num_attention_heads"]
    layers = config["num_hidden_layers"]
    weights = 2 * h * head_dim * (heads + config["num_key_value_heads"])
    if "num_experts" in config:
        weights += h * config["num_experts"] + 3 * h * config["moe_intermediate_size"] * config["num_experts_per_tok"]
    else:
        weights += 3 * h * config["intermediate_size"]
    return 6 * (layers * weights + h * config["vocab_size"]) + 6 * layers * heads * head_dim * length


def peak(device: str) -> tuple[float, str]:
    """Operations per second of the device in bf16 (fp32 on a CPU), and where the number comes from."""
    if device == "cuda":
        name = torch.cuda.get_device_name(0)
        for part, operations in PEAKS:
            if part in name:
                return operations, f"{part}: {operations / 1e12:.0f} TFLOP/s by its data sheet"
    measured = _measure(device)
    return measured, f"{measured / 1e12:.3g} TFLOP/s, measured by a product of {PROBE[device]} x {PROBE[device]}"


def _measure(device: str) -> float:
    size, dtype = PROBE[device], torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
