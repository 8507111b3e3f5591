"""The same model in transformers, with SDPA and compiled layers: weights in bf16 and fused AdamW in bf16.

That keeps no fp32 weights and so does less work per step than Archon does; it is what a plain training loop would use
on one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gpu.speed.archon import DTYPE
from gpu.speed.shapes import Workload
from gpu.speed.timing import Timing, free_memory, time_calls


def build(config: Mapping[str, Any], device: str, *, compiled: bool) -> Any:
    """The model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = {name: value for name, value in config.items() if name != "model_type"}
    hf_config = AutoConfig.for_model(config["model_type"], **entries)
    hf_config._attn_implementation = "sdpa"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(hf_config, dtype=getattr(torch, DTYPE[device]))
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    return model


def time_training(config: Mapping[str, Any], workload: Workload, device: str) -> tuple[Timing, str]:
    """Training steps with as large micro-batches as fit: its logits are [tokens, vocabulary]."""
    size = workload.sequences
    while True:
        free_memory(device)
        torch.compiler.reset()
        try:
            timing = _time_with(config, workload, device, size)
            return timing, f"micro-batches of {size} sequences"
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2


def _time_with(config: Mapping[str, Any], workload: Workload, device: str, size: int) -> Timing:
    model = build(config, device, compiled=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(0, config["vocab_size"], (workload.sequences, workload.length), device=device)
    parts = ids.split(size)

    def step() -> None:
        optimizer.zero_grad()
        for part in parts:
            (model(input_ids=part, labels=part, use_cache=False).loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return time_calls(step, device)
