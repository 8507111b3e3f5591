"""The process of one rank of a world, forked from the forkserver.

It sends yielded values, the result or the failure to its parent, and stays until the parent closes the connection: an
early exit would break connections on which peers still wait for data.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from archon_core.ranks.error_file import is_connection_loss
from archon_testing.failures import RankFailure
from archon_testing.functions import FunctionReference

STACK_SIGNAL = signal.SIGUSR1
"""On this signal, a rank appends the Python stacks of its threads to ``stack_file``."""

_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_RANKS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Worlds check values, not speed: one thread on the CPU, on every machine."""


@dataclass(frozen=True)
class RankStart:
    """The start arguments of a rank.

    Attributes:
        rank: from 0.
        n_ranks: of the world; a single rank gets no process group.
        folder: of the world, for the store, outputs and stacks.
        environment: of the parent; the forkserver's environment may be outdated.
        function: the function to run.
        arguments: its positional arguments, pickled.
        collective_timeout: seconds after which a collective gives up.
    """

    rank: int
    n_ranks: int
    folder: Path
    environment: Mapping[str, str]
    function: FunctionReference
    arguments: bytes
    collective_timeout: float


@dataclass(frozen=True)
class Message:
    """A message from a rank to its parent.

    Attributes:
        kind: ``value`` for a generator's values, ``result`` or ``failure`` at the end.
        payload: the value, result or ``RankFailure``, pickled.
    """

    kind: Literal["value", "result", "failure"]
    payload: bytes


def output_file(folder: Path, rank: int) -> Path:
    """The file of a rank's standard output and error."""
    return folder / f"rank{rank}.output"


def stack_file(folder: Path, rank: int) -> Path:
    """The file of a rank's stacks."""
    return folder / f"rank{rank}.stack"


def run_rank(start: RankStart, connection: Connection) -> None:
    """Run a rank's process to its end; never returns."""
    # Ctrl-C reaches every process of a terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if connection.poll():
        # The parent gave up while the forkserver was importing; the world's folder is gone, too.
        _end(0)
    _redirect_output(output_file(start.folder, start.rank))
    with open(stack_file(start.folder, start.rank), "w", encoding="utf-8") as stacks:
        faulthandler.enable()
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)
        leaving = threading.Thread(target=leave_with_parent, args=(connection,), daemon=True)
        leaving.start()
        os.environ.clear()
        os.environ.update({name: value for name, value in start.environment.items() if name not in _OF_LAUNCHERS})
        os.environ |= _OF_RANKS
        try:
            _run(start, connection)
        except BaseException as error:
            _send(connection, "failure", _failure(start.rank, error))
            _end(1)
        leaving.join()


def leave_with_parent(connection: Connection) -> None:
    """End this process when its parent closes the connection, or dies."""
    # The parent sends nothing: readable means closed.
    connection.poll(None)
    _end(0)


def _run(start: RankStart, connection: Connection) -> None:
    # Load the function first: its file may define the classes of the arguments.
    function = start.function.load()
    arguments = pickle.loads(start.arguments)
    _set_up_torch(start)
    outcome = function(*arguments)
    if isinstance(outcome, Generator):
        for value in outcome:
            _send(connection, "value", value)
        outcome = None
    _send(connection, "result", outcome)


def _set_up_torch(start: RankStart) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if start.n_ranks == 1:
        return
    # All ranks are on this machine; the interface of its host name may be down or have no address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(start.folder / "store"), start.n_ranks),
        rank=start.rank,
        world_size=start.n_ranks,
        timeout=timedelta(seconds=start.collective_timeout),
    )


def _loopback() -> str:
    """``lo`` on Linux, ``lo0`` on macOS."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _redirect_output(file: Path) -> None:
    with open(file, "ab", buffering=0) as output:
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(output.fileno(), descriptor)
    # Unbuffered, to keep the last lines of a killed rank.
    sys.stdout.reconfigure(line_buffering=True)


def _send(connection: Connection, kind: Literal["value", "result", "failure"], value: Any) -> None:
    try:
        payload = pickle.dumps(value)
    except Exception as error:  # pickle raises PicklingError, TypeError, AttributeError and what __reduce__ raises
        raise TypeError(
            f"found a {kind} of type {type(value).__name__} that cannot be pickled ({error}); a rank gives plain "
            "values, tensors, or dataclasses of them"
        ) from error
    connection.send(Message(kind, payload))


def _failure(rank: int, error: BaseException) -> RankFailure:
    own = error.__traceback__
    while own is not None and own.tb_next is not None and own.tb_frame.f_code.co_filename == __file__:
        own = own.tb_next
    return RankFailure(
        rank,
        "exception",
        summary="".join(traceback.format_exception_only(error)).strip(),
        details="".join(traceback.format_exception(type(error), error, own)),
        lost_connection=is_connection_loss(error),
    )


def own_stacks(text: str) -> str:
    """The stacks that a rank wrote on ``STACK_SIGNAL``, without this module's waiting thread and outer frames."""
    threads = [thread for thread in text.split("\n\n") if f" in {leave_with_parent.__name__}" not in thread]
    return "\n".join(thread.partition(f'\n  File "{__file__}"')[0].rstrip() for thread in threads)


def _end(code: int) -> None:
    """Exit at once: an orderly exit could wait forever for threads and peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
