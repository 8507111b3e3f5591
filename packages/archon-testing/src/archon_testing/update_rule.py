"""Checks the first optimizer step against the published formula of AdamW (Loshchilov and Hutter, 2019).

It needs no reference run, so it also finds a wrong step that one process and a layout share. In the first step, the
bias-corrected moments of Adam are g and g^2 for the gradient g: w becomes w - lr * decay * w - lr * g / (|g| + eps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from archon_core.contracts.engine_config import OptimizerConfig
from archon_testing.held_shards import HeldShard

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Relative to the largest weight. One step's decay is 1e-3 of a weight; its rounding is about 1e-7."""

Decay = Literal["right", "missing", "unwanted", "wrong", "other"]


def wrong_updates(
    before: Mapping[str, HeldShard],
    gradients: Mapping[str, HeldShard],
    after: Mapping[str, HeldShard],
    *,
    learning_rate: float,
    optimizer: OptimizerConfig,
) -> list[str]:
    """Remarks about a wrong first step; empty for a right one.

    Args:
        before: parameter -> this rank's shard before the step.
        gradients: after clipping.
        after: after the step.
        learning_rate: of the step.
        optimizer: AdamW's options.
    """
    found: dict[Decay, list[str]] = {}
    for name, shard in after.items():
        verdict = decay_of_update(
            before[name],
            gradients[name],
            shard,
            is_bias=name.endswith("bias"),
            learning_rate=learning_rate,
            optimizer=optimizer,
        )
        found.setdefault(verdict, []).append(name)
    sentences: dict[Decay, str] = {
        "missing": "step 1 leaves out weight decay, which matrices have, for {}",
        "unwanted": "step 1 applies weight decay, which vectors do not have, to {}",
        "wrong": "step 1 applies weight decay with another factor than optimizer.weight_decay to {}",
        "other": "step 1 moves weights otherwise than AdamW does from these gradients: {}",
    }
    return [text.format(_listed(found[kind])) for kind, text in sentences.items() if kind in found]


def decay_of_update(
    before: HeldShard,
    gradient: HeldShard,
    after: HeldShard,
    *,
    is_bias: bool = False,
    learning_rate: float,
    optimizer: OptimizerConfig,
) -> Decay:
    """The remark about wrong weight decay in the first step; only matrices decay (``is_decayed``), not the stacked
    biases of experts."""
    start, g, end = (shard.values.double() for shard in (before, gradient, after))
    decay = optimizer.weight_decay if len(after.shape) >= 2 and not is_bias else 0.0
    scale = float(start.abs().max()) if start.numel() else 0.0
    limit = LIMITS.get(after.values.dtype, 1e-2) * scale
    undecayed = start - learning_rate * g / (g.abs() + optimizer.eps)
    left = end - undecayed + learning_rate * decay * start
    if not start.numel() or float(left.abs().max()) <= limit:
        return "right"
    # The amount of decay: the least-squares multiple of one step's decay.
    step = learning_rate * optimizer.weight_decay * start
    factor = float(((undecayed - end) * step).sum() / (step * step).sum())
    if float((undecayed - end - factor * step).abs().max()) > limit:
        return "other"
    if decay == 0.0:
        return "unwanted"
    return "missing" if abs(factor) < 0.01 else "wrong"


def _listed(names: list[str]) -> str:
    return f"{names[0]}" if len(names) == 1 else f"{len(names)} weights, such as {names[0]}"
