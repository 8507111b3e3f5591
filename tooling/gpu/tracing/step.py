"""Traces one training step with torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_testing.losses import NegativeLogLikelihood
from bench.intervals import Interval, busy, gaps, largest, report
from gpu.records import Check, Context, Outcome, Skipped
from gpu.speed import archon, shapes
from gpu.speed.flops import synchronize
from gpu.speed.timing import WARM_UP, free_memory

FILE = "trace.json.gz"
"""In the run's work folder, in Chrome's format; the command puts it beside the JSON file."""


def checks(context: Context) -> Iterator[Check]:
    """One trace."""
    yield Check("training-step", partial(training_step, context))


def training_step(context: Context) -> Outcome:
    """A step of the dense model, in one micro-batch per sequence, which fits where the speed check fits."""
    config, workload = shapes.dense(context.device)
    free_memory(context.device)
    # On a CPU the speed check compiles the same blocks, which takes minutes.
    mb_spec = MicroBatchSpec(n_mbs=workload.sequences)
    engine = archon.build(config, context.device, compiled=context.on_gpu, mb_spec=mb_spec)
    batch, loss = archon.batch_of(config, workload), NegativeLogLikelihood()
    for _ in range(WARM_UP):
        engine.train_batch(batch, loss)
    synchronize(context.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.on_gpu else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        engine.train_batch(batch, loss)
        synchronize(context.device)
        seconds = time.perf_counter() - start
    engine.close()
    profiler.export_chrome_trace(str(context.work / FILE))
    found = intervals_of(profiler.events(), on_gpu=context.on_gpu)
    if not found:
        raise Skipped(f"the profiler saw no kernels, as without access to CUPTI; a step took {1e3 * seconds:.0f} ms")
    whole = sum(one.length for one in found)
    measured = {
        "step_ms": 1e3 * seconds,
        "busy": busy(found) / 1e6 / seconds,
        "ten_largest": sum(time for _, time, _ in largest(found)) / whole,
        "largest_gap_ms": max((gap.length for gap in gaps(found)), default=0.0) / 1e3,
    }
    return Outcome(measured, message=f"{len(found)} kernels, torch {torch.__version__}\n{report(found)}")


def intervals_of(events: Any, *, on_gpu: bool) -> list[Interval]:
    """Kernels on the GPU; on a CPU the operations that call no others."""
    if on_gpu:
        # The profiler repeats ranges of record_function, such as FSDP2's, on the GPU's time line, around their kernels,
        # and marks both as annotations. Names do not tell them apart: Inductor records each launch under its kernel's.
        chosen = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    else:
        chosen = [event for event in events if not event.cpu_children and event.name != "[memory]"]
    return [Interval(event.name, event.time_range.start, event.time_range.end) for event in chosen]
