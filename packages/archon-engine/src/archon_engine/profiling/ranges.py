"""Named ranges of a trace: phases, micro-batches and pipeline actions.

``torch.profiler.record_function`` costs microseconds even if nothing records, and pipelines have thousands of ranges.
These cost a check of one flag.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.profiler import record_function

from archon_engine.compat import is_profiler_recording

_NO_RANGE = nullcontext()


def profiled_range(*name: object) -> AbstractContextManager[Any]:
    """A range of the trace, if a profiler records.

    Args:
        name: parts of the range's name, such as ``"forward", 3``. They become text only if a profiler records.
    """
    return record_function(" ".join(map(str, name))) if is_profiler_recording() else _NO_RANGE
