"""A running world: its processes, their messages, and their end.

Ranks are forked from a forkserver that has torch and the engine loaded. ``RunningWorld`` does not block: the caller
collects ``waits_for`` of all worlds, waits for any of them, and passes the ready ranks to ``hear``.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from archon_testing.failures import RankFailure, describe_exit, failed_world, hung_world
from archon_testing.rank_process import (
    STACK_SIGNAL,
    Message,
    RankStart,
    output_file,
    own_stacks,
    run_rank,
    stack_file,
)

PRELOADED = (
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.pipelining",
    "torch._dynamo",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.configuration_qwen3",
    "archon_engine.engine",
    # Of the engine and of plugins, modules that only a model, a layout or an option imports.
    "archon_engine.nn.attention_backends.sdpa",
    "archon_engine.nn.head",
    "archon_models_qwen.decoder",
    "archon_models_qwen.hybrid_arguments",
    "archon_models_qwen.moe_arguments",
    "archon_models_qwen.parallel_plan",
    "archon_models_qwen.weight_map",
    "archon_moe.builder",
    "archon_pipeline.runner",
    "archon_testing.oracle_ranks",
    "archon_testing.preloaded_plugins",
    "archon_testing.rank_process",
)
"""Modules that the forkserver imports once instead of every rank; missing modules are skipped."""

GRACE = 1.0
"""Seconds after a failure in which other ranks may report their failures."""
STACK_WAIT = 3.0
"""Largest number of seconds for hung ranks to write their stacks."""
LEAVE_WAIT = 5.0
"""Largest number of seconds for ranks to exit by themselves after all have returned."""
_OUTPUT_LINES = 30

OnValue = Callable[[int, Any], None]
"""Called with the rank and the value that its generator yielded."""


class RunningWorld:
    """The processes of a running world; the end of the ``with`` block ends them."""

    def __init__(self, starts: Sequence[RankStart], time_limit: float, on_value: OnValue) -> None:
        self._starts = starts
        self._time_limit = time_limit
        self._on_value = on_value
        self._processes: dict[int, BaseProcess] = {}
        self._connections: dict[int, Connection] = {}
        self._results: dict[int, Any] = {}
        self._failures: dict[int, RankFailure] = {}
        self._deadlines: dict[int, float] = {}
        self._grace_ends = math.inf

    def __enter__(self) -> RunningWorld:
        try:
            _ensure_forkserver()
            for start in self._starts:
                self._start(start)
            self._deadlines = {start.rank: time.monotonic() + self._time_limit for start in self._starts}
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def waits_for(self) -> dict[Any, int]:
        """Object for ``multiprocessing.connection.wait`` -> its rank."""
        sources: dict[Any, int] = {self._connections[rank]: rank for rank in self._running}
        return sources | {self._processes[rank].sentinel: rank for rank in self._running}

    @property
    def seconds_left(self) -> float:
        """Seconds until the world needs attention even without a message."""
        deadlines = (self._deadlines[rank] for rank in self._running)
        return max(0.0, min(self._grace_ends, *deadlines, math.inf) - time.monotonic())

    @property
    def has_ended(self) -> bool:
        """Whether all ranks have returned or failed, or the time limit has passed."""
        return not self._running or self.seconds_left <= 0

    def hear(self, ranks: Sequence[int]) -> None:
        """Read all pending messages of ``ranks``."""
        for rank in dict.fromkeys(ranks):
            self._read(rank)
        if self._failures and self._grace_ends == math.inf:
            self._grace_ends = time.monotonic() + GRACE

    def results(self) -> list[Any]:
        """The results of all ranks of an ended world, in order. Raises WorldError."""
        n_ranks = len(self._starts)
        if self._failures:
            raise failed_world(n_ranks, self._failures.values())
        if self._running:
            raise hung_world(n_ranks, self._time_limit, self._stacks(self._running))
        return [self._results[start.rank] for start in self._starts]

    def show_output(self) -> None:
        """Print the output of the ranks, each line with its rank."""
        for start in self._starts:
            for line in self._output(start.rank):
                print(f"[rank {start.rank}] {line}")
        sys.stdout.flush()

    @property
    def _running(self) -> list[int]:
        return [s.rank for s in self._starts if s.rank not in self._results and s.rank not in self._failures]

    def _start(self, start: RankStart) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connections[start.rank] = ours
        with theirs:
            context = multiprocessing.get_context("forkserver")
            process = context.Process(target=run_rank, args=(start, theirs), name=f"rank {start.rank}", daemon=True)
            process.start()
        self._processes[start.rank] = process

    def _read(self, rank: int) -> None:
        connection = self._connections[rank]
        try:
            while rank in self._running and connection.poll():
                self._take(rank, connection.recv())
        except (EOFError, OSError):
            pass
        else:
            if rank not in self._running or self._processes[rank].is_alive():
                return
        self._processes[rank].join(LEAVE_WAIT)
        code = self._processes[rank].exitcode
        cause, summary = describe_exit(code if code is not None else 0)
        self._failures[rank] = RankFailure(rank, cause, summary, output=self._last_output(rank))

    def _take(self, rank: int, message: Message) -> None:
        content = pickle.loads(message.payload)
        match message.kind:
            case "value":
                self._deadlines[rank] = time.monotonic() + self._time_limit
                self._on_value(rank, content)
            case "result":
                self._results[rank] = content
            case "failure":
                self._failures[rank] = content

    def _stacks(self, ranks: Sequence[int]) -> list[RankFailure]:
        """Make hung ranks write their stacks."""
        folder = self._starts[0].folder
        for rank in ranks:
            pid = self._processes[rank].pid
            assert pid is not None, "it was started"
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)
        sizes: list[int] = []
        ends = time.monotonic() + STACK_WAIT
        while time.monotonic() < ends:
            time.sleep(0.1)
            before, sizes = sizes, [len(_read_text(stack_file(folder, rank))) for rank in ranks]
            if all(sizes) and sizes == before:
                break
        return [
            RankFailure(
                rank,
                "hang",
                f"no result within {self._time_limit:g} s",
                details=own_stacks(_read_text(stack_file(folder, rank))) or "(none: it answers no signal)",
                output=self._last_output(rank),
            )
            for rank in ranks
        ]

    def _output(self, rank: int) -> list[str]:
        return _read_text(output_file(self._starts[0].folder, rank)).splitlines()

    def _last_output(self, rank: int) -> str:
        return "\n".join(self._output(rank)[-_OUTPUT_LINES:])

    def _end(self) -> None:
        """Let returned ranks exit, kill the others, and wait for all."""
        running = self._running
        for connection in self._connections.values():
            connection.close()
        ends = time.monotonic() + LEAVE_WAIT
        for rank, process in self._processes.items():
            if rank not in running:
                process.join(max(0.0, ends - time.monotonic()))
            if process.is_alive():
                process.kill()
        for process in self._processes.values():
            process.join()
            process.close()


def _ensure_forkserver() -> None:
    """Start the forkserver of this process so that it ignores Ctrl-C, which would print a traceback during imports."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    # Before the signal is blocked: starting the resource tracker, which the forkserver needs, unblocks it.
    multiprocessing.resource_tracker.ensure_running()
    with _interrupts_held():
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
