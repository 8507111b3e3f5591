"""Two ranks that share one device and speak over gloo: data, tensor, context and expert parallelism against the
reference.

NCCL refuses two ranks on one GPU; gloo copies through the host, which is slow and computes the same (but see
``gloo_gather``). Each rank compares the pieces that it holds. Both ranks stay for one case after the other, until one
fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gpu.numerics.gloo_gather import gather_plainly
from gpu.numerics.models import ModelName, build
from gpu.numerics.observing import FP32_BOUNDS, batches_of, errors, observe
from gpu.numerics.oracle import reference
from gpu.records import Check, Context, Outcome

RANKS = 2
POLL = 0.05
LAST_CHARACTERS = 3000
"""Of the output of a rank that failed."""


@dataclass(frozen=True)
class Case:
    """What two ranks train.

    Attributes:
        model: name of the model.
        layout: without backend.
        cp_style: how context ranks share attention.
        prefixes: whether sequences share prefixes, computed once.
    """

    model: ModelName
    layout: str
    cp_style: str = "auto"
    prefixes: bool = False

    @property
    def label(self) -> str:
        """Such as ``qwen3-c2-gather-tree``."""
        style = "" if self.cp_style == "auto" else f"-{self.cp_style}"
        return f"{self.model}-{self.layout}{style}{'-tree' if self.prefixes else ''}"


CASES = (
    Case("qwen3", "d2"),
    Case("qwen3", "t2"),
    Case("qwen3", "c2"),
    Case("qwen3_moe", "d2e2"),
    Case("qwen3", "c2", "gather"),
    Case("qwen3", "c2", "gather", prefixes=True),
    Case("critic", "t2"),
)


def checks(context: Context) -> Iterator[Check]:
    """One per case."""
    world = World(context)
    for case in CASES:
        yield Check(case.label, partial(two_ranks, world, case))


def two_ranks(world: World, case: Case) -> Outcome:
    """The worst of both ranks' errors."""
    found = world.run(case)
    if case is CASES[-1]:
        world.end()
    return Outcome({quantity: max(of_rank[quantity] for of_rank in found) for quantity in FP32_BOUNDS}, FP32_BOUNDS)


class World:
    """Both ranks. They start with the first case; after a failure, others start with the next one."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._processes: list[subprocess.Popen[str]] = []
        self._folder = context.work

    def run(self, case: Case) -> list[dict[str, float]]:
        """Train a case and return the errors of each rank. Raises RuntimeError if a rank fails."""
        reference(case.model, self._context)
        if self._ended:
            self.end()
        if not self._processes:
            self._start()
        for process in self._processes:
            assert process.stdin is not None, "a rank reads its cases"
            # A rank that has just ended is found below, with its output.
            with suppress(BrokenPipeError):
                process.stdin.write(f"{CASES.index(case)}\n")
                process.stdin.flush()
        files = [self._folder / f"{case.label}.{rank}.json" for rank in range(RANKS)]
        while not all(file.is_file() for file in files):
            if failed := self._ended:
                self.end()
                raise RuntimeError("; ".join(f"rank {rank} failed:\n{self._output(rank)}" for rank in failed))
            time.sleep(POLL)
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    @property
    def _ended(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if process.poll() is not None]

    def end(self) -> None:
        """End both ranks."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def _start(self) -> None:
        self._folder = self._context.work / f"ranks-{time.monotonic_ns()}"
        self._folder.mkdir()
        environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **os.environ}
        for rank in range(RANKS):
            call = (
                "from gpu.numerics.ranks import serve; "
                f"serve({rank}, {str(self._folder)!r}, {str(self._context.work)!r}, {self._context.device!r})"
            )
            with (self._folder / f"{rank}.log").open("w", encoding="utf-8") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-c", call],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        text=True,
                    )
                )

    def _output(self, rank: int) -> str:
        text = (self._folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace")
        return text[-LAST_CHARACTERS:]


def serve(rank: int, folder: str, work: str, device: str) -> None:
    """In a rank's own process: train the cases whose numbers come in, until there are no more."""
    import torch.distributed as dist

    torch.set_float32_matmul_precision("highest")
    context = Context(device, Path(work))
    if context.on_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    # Also on a CPU, so that it is run there.
    library = gather_plainly(device)
    for line in sys.stdin:
        case = CASES[int(line)]
        found = json.dumps(_errors(case, context))
        file = Path(folder) / f"{case.label}.{rank}.json"
        # Under its name only when it is whole.
        file.with_suffix(".partial").write_text(found, encoding="utf-8")
        file.with_suffix(".partial").rename(file)
    del library
    sys.stdout.flush()
    os._exit(0)


def _errors(case: Case, context: Context) -> dict[str, float]:
    expected = reference(case.model, context)
    record = expected.prefixes if case.prefixes else expected.training
    assert record is not None, f"{case.model} has a reference on such batches"
    shares: dict[str, bool] = {"shares_prefixes": case.prefixes}
    options = {"layout": f"archon:{case.layout}", "cp_style": case.cp_style}
    engine = build(case.model, context, path=expected.checkpoint, **options, **shares)
    found = observe(engine, case.model, batches_of(case.model, context, torch.float32, **shares))
    engine.close()
    return errors(found, record)
