"""Prepares a model's blocks between tensor parallelism and FSDP2: compiles, then checkpoints, then measures.

Each step wraps ``forward``, so the first step is innermost: a checkpoint recomputes compiled code, and measuring covers
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from archon_core.errors import ConfigError
from archon_core.models.parallel_plan import ParallelPlan
from archon_engine.models.staged import stages_of
from archon_engine.options.effective import EffectiveConfig
from archon_engine.parallel.activation_checkpointing import apply_full_checkpointing, apply_selective_checkpointing
from archon_engine.parallel.compilation import CompiledBlocks, Keeping, check_compiler
from archon_engine.parallel.recompute_log import RecomputeLog
from archon_engine.parallel.units import blocks_of


@dataclass(frozen=True)
class Blocks:
    """The prepared blocks of a module.

    Attributes:
        compiled: the compiled blocks of each stage; empty without compilation.
        log: measures the first step; ``None`` without ``ac_debug``.
    """

    compiled: tuple[CompiledBlocks, ...] = ()
    log: RecomputeLog | None = None

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run blocks eagerly inside the context."""
        with ExitStack() as stack:
            for blocks in self.compiled:
                stack.enter_context(blocks.suspended())
            yield


def prepare_blocks(
    module: nn.Module, plan: ParallelPlan, effective: EffectiveConfig, *, role: str, among: Sequence[str] | None = None
) -> Blocks:
    """Compile and checkpoint the blocks of ``module`` in place, according to ``effective``.

    Args:
        role: the section's name, for messages.
        among: names of all blocks of the model, if ``module`` holds only some stages.

    Raises:
        ConfigError: there is no compiler, or the model has too few blocks to recompute every Nth.
    """
    if effective.ac_every is not None:
        n_blocks = sum(1 for _ in blocks_of(module, plan)) if among is None else len(among)
        _check_every_nth(effective.ac_every, n_blocks, role=role)
    if effective.compile:
        check_compiler(effective.device, option=f"{role}.archon.enable_compile")
    log = RecomputeLog(compiled=effective.compile) if effective.ac_debug else None
    compiled = [_prepare_stage(stage, plan, effective, among, log) for stage in stages_of(module)]
    return Blocks(tuple(blocks for blocks in compiled if blocks is not None), log)


def _prepare_stage(
    module: nn.Module,
    plan: ParallelPlan,
    effective: EffectiveConfig,
    among: Sequence[str] | None,
    log: RecomputeLog | None,
) -> CompiledBlocks | None:
    compiled = None
    by_operation = effective.ac_mode == "selective" and effective.ac_every is None
    if effective.compile:
        # Compiled graphs recompute by themselves, because torch's checkpoint does not see operations inside a graph.
        keeping = None
        if effective.ac_mode == "memory_budget":
            keeping = Keeping.within(effective.ac_memory_budget)
        elif by_operation:
            keeping = Keeping.by_operation()
        compiled = CompiledBlocks(module, plan, keeping=keeping, log=log)
    elif by_operation:
        apply_selective_checkpointing(module, plan, log=log)
    if effective.ac_mode == "full":
        apply_full_checkpointing(module, plan, log=log)
    elif effective.ac_every is not None:
        apply_full_checkpointing(module, plan, every=effective.ac_every, among=among, log=log)
    if log is not None:
        for name, block in blocks_of(module, plan):
            log.watch(name, block)
    return compiled


def _check_every_nth(every: int, n_blocks: int, *, role: str) -> None:
    if every > n_blocks:
        raise ConfigError(
            f"{role}.archon.selective_ac_option: found {every}; the model has {n_blocks} blocks, so none would be "
            f"recomputed; allowed are 1 to {n_blocks}, and op"
        )
