"""Training steps of the Archon engine, as a user would have them: default options, bf16 on a GPU, compiled blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from archon_core import assemble
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.parallel.shards import local_values
from archon_testing.losses import NegativeLogLikelihood
from gpu.speed.shapes import Workload
from gpu.speed.timing import Timing, free_memory, time_calls

DTYPE = {"cuda": "bfloat16", "cpu": "float32"}
STANDARD_DEVIATION = 0.02


def build(
    config: Mapping[str, Any], device: str, *, trained: bool = True, compiled: bool = True, **options: Any
) -> Any:
    """An engine with random weights.

    Args:
        trained: with an optimizer.
        options: of ``actor``.
    """
    engine_config = ArchonEngineConfig(
        backend="archon:d1",
        model_config=dict(config),
        dtype=DTYPE[device],
        optimizer=OptimizerConfig(lr=1e-6) if trained else None,
        archon=ArchonOptions(enable_compile=compiled),
        **options,
    )
    engine = assemble(engine_config, seed=0, explicit=frozenset({"actor.archon.enable_compile"}))
    with _weights_drawn_on_the_device():
        engine.initialize()
    return engine


def batch_of(config: Mapping[str, Any], workload: Workload) -> Batch:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)
    size = (workload.sequences, workload.length)
    return Batch.from_sequences(list(torch.randint(0, config["vocab_size"], size, generator=generator)))


def time_training(
    config: Mapping[str, Any], workload: Workload, device: str, *, compiled: bool = True
) -> tuple[Timing, str]:
    """Training steps that keep all activations, in as many micro-batches as memory asks for."""
    batch, loss = batch_of(config, workload), NegativeLogLikelihood()
    n_mbs = 1
    while True:
        free_memory(device)
        engine = build(config, device, compiled=compiled, mb_spec=MicroBatchSpec(n_mbs=n_mbs))
        try:
            timing = time_calls(lambda engine=engine: engine.train_batch(batch, loss), device)
            return timing, f"{n_mbs} micro-batch{'es' if n_mbs > 1 else ''}, no recomputation"
        except torch.OutOfMemoryError:
            if n_mbs == workload.sequences:
                raise
        finally:
            engine.close()
            del engine
        n_mbs *= 2


@contextmanager
def _weights_drawn_on_the_device() -> Iterator[None]:
    """Draw weights where they are: from the seed, on the CPU, billions of them would take most of the time limit."""

    @torch.no_grad()
    def draw(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        for parameter in module.parameters():
            values = local_values(parameter)
            values.normal_(0.0, STANDARD_DEVIATION) if parameter.ndim >= 2 else values.fill_(1.0)

    with mock.patch("archon_engine.assembly.assembled.initialize_weights", draw):
        yield
