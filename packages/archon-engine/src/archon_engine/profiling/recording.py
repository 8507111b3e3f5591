"""Records a block of code on this rank: a trace of torch's profiler, and a snapshot of the CUDA allocator's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from archon_engine.compat import dump_cuda_memory, record_cuda_memory, stop_recording_cuda_memory


@contextmanager
def traced(file: Path) -> Iterator[None]:
    """Trace the operations of the block, with their shapes and memory events. ``file`` is written if it ends well.

    Args:
        file: name ending in ``.trace.json.gz``: Chrome's trace format, compressed.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that still run belong to the block
    # Under its final name only when it is complete; torch compresses if the name ends in .gz.
    writing = _hidden(file)
    profiler.export_chrome_trace(str(writing))
    writing.replace(file)


@contextmanager
def memory_history(file: Path, max_entries: int) -> Iterator[None]:
    """Record the block's allocations on CUDA. ``file`` is written if it ends well.

    Args:
        file: name ending in ``.memory.pickle``, for https://pytorch.org/memory_viz.
        max_entries: number of allocations and frees to keep; older ones are dropped.
    """
    with ExitStack() as stack:
        record_cuda_memory(max_entries)
        stack.callback(stop_recording_cuda_memory)
        yield
        torch.cuda.synchronize()
        writing = _hidden(file)
        dump_cuda_memory(str(writing))
        writing.replace(file)


def _hidden(file: Path) -> Path:
    return file.with_name(f".{file.name}")
