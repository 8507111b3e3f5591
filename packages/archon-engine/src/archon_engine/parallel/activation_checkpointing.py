"""Activation checkpointing: drops results of a block's forward pass, and recomputes them in backward.

Only ``forward`` of a block is replaced, so its name stays the same. FSDP2's hooks remain outside, so a block is
recomputed from the weights that FSDP2 gathered for its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from archon_core.models.parallel_plan import ParallelPlan
from archon_engine.compat import ignore_profiler_marks
from archon_engine.parallel.recompute_log import RecomputeLog
from archon_engine.parallel.units import blocks_of

_KEPT_NAMES = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "_scaled_mm",
    "_grouped_mm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
    "_flash_attention_forward",
    "_efficient_attention_forward",
    "_cudnn_attention_forward",
)
"""Kept operations of ``aten``: matrix products and attention, which take far longer to compute than to read."""

_KEPT_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "torch_attn")
"""Collectives, which are slow and which no rank may repeat without the others, and torch's varlen attention."""

_EXPERTS = "grouped_experts"
"""Name, in any namespace, by which packages of experts can mark an operation that computes all products of a layer."""

_WAIT = "wait_tensor"
"""Not kept: it returns its argument, the result of the preceding collective, which is kept."""


def is_kept(operation: Any) -> bool:
    """Whether selective checkpointing keeps the results of ``operation`` (an ``OpOverload`` or a higher-order one)."""
    namespace, name = operation.namespace, operation.name().split("::")[-1].split(".")[0]
    if namespace in _KEPT_NAMESPACES:
        return name != _WAIT
    return (namespace == "aten" and name in _KEPT_NAMES) or name in ("flex_attention", _EXPERTS)


def apply_full_checkpointing(
    module: nn.Module,
    plan: ParallelPlan,
    *,
    every: int = 1,
    among: Sequence[str] | None = None,
    log: RecomputeLog | None = None,
) -> None:
    """Recompute every Nth block as a whole, beginning with block N.

    Args:
        module: changed in place.
        plan: names the blocks.
        every: N.
        among: names of all blocks of the model if ``module`` is a stage of it, because N counts over the whole model;
            ``None`` for a whole model.
        log: records what is kept and recomputed.
    """
    counted = list(among) if among is not None else [name for name, _ in blocks_of(module, plan)]
    recomputed = set(counted[every - 1 :: every])
    for name, block in blocks_of(module, plan):
        if name in recomputed:
            contexts = None if log is None else partial(log.checkpoint_contexts, name)
            _checkpoint(block, contexts)


def apply_selective_checkpointing(module: nn.Module, plan: ParallelPlan, *, log: RecomputeLog | None = None) -> None:
    """Keep the results of matrix products, attention and collectives of every block, and recompute all others."""
    ignore_profiler_marks()
    for name, block in blocks_of(module, plan):
        contexts = _selective_contexts if log is None else partial(log.checkpoint_contexts, name, _selective_contexts)
        _checkpoint(block, contexts)


def _selective_contexts() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpoint(block: nn.Module, contexts: Callable[[], tuple[Any, Any]] | None) -> None:
    given = {} if contexts is None else {"context_fn": contexts}
    # In every mode, recomputation draws the same random numbers: dropout must drop the same elements.
    forward = partial(_with_whole_weights, block, block.forward)
    block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=True, **given)


def _with_whole_weights(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # The second half of a split backward pass starts inside the block, behind the hooks by which FSDP2 gathers freed
    # weights for backward. Everywhere else the weights are whole already, and this does nothing.
    if isinstance(block, FSDPModule):
        block.unshard()
    return forward(*args, **kwargs)
