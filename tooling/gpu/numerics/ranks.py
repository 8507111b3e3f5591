"""Two ranks that share one device and speak over gloo: data, tensor and expert parallelism against the reference.

NCCL refuses two ranks on one GPU; gloo copies through the host, which is slow and computes the same. Each rank compares
the pieces that it holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gpu.numerics.models import ModelName, build
from gpu.numerics.observing import FP32_BOUNDS, batches_of, errors, observe
from gpu.numerics.oracle import reference
from gpu.records import Check, Context, Outcome

RANKS = 2


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
    Case("qwen3", "c2", "gather"),
    Case("qwen3", "c2", "gather", prefixes=True),
    Case("qwen3_moe", "d2e2"),
    Case("critic", "t2"),
)


def checks(context: Context) -> Iterator[Check]:
    """One per case."""
    for case in CASES:
        yield Check(case.label, partial(two_ranks, context, case))


def two_ranks(context: Context, case: Case) -> Outcome:
    """Start both ranks and take the worst of their errors."""
    reference(case.model, context)
    folder = context.work / f"ranks-{case.label}"
    folder.mkdir()
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **os.environ}
    processes = []
    for rank in range(RANKS):
        call = f"from gpu.numerics.ranks import Case, run_rank; run_rank({rank}, {case!r}, {str(folder)!r}, "
        call += f"{str(context.work)!r}, {context.device!r})"
        log = (folder / f"{rank}.log").open("w", encoding="utf-8")
        command = [sys.executable, "-P", "-c", call]
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    failed = [rank for rank, code in enumerate(_codes(processes)) if code]
    if failed:
        tails = [(folder / f"{rank}.log").read_text(encoding="utf-8")[-1500:] for rank in failed]
        raise RuntimeError("; ".join(f"rank {r} failed:\n{tail}" for r, tail in zip(failed, tails, strict=True)))
    found = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    measured = {quantity: max(of_rank[quantity] for of_rank in found) for quantity in FP32_BOUNDS}
    return Outcome(measured, FP32_BOUNDS)


def _codes(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes; once one rank has failed, the others, which may wait for it, are ended."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            for process in processes:
                process.kill()
        try:
            next(p for p in processes if p.poll() is None).wait(0.2)
        except (subprocess.TimeoutExpired, StopIteration):
            continue
    # Ranks that were ended for another one's failure are not to blame.
    return [0 if process.returncode == -9 else process.returncode for process in processes]


def run_rank(rank: int, case: Case, folder: str, work: str, device: str) -> None:
    """In a rank's own process."""
    import torch.distributed as dist

    torch.set_float32_matmul_precision("highest")
    context = Context(device, Path(work))
    if context.on_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    expected = reference(case.model, context)
    record = expected.prefixes if case.prefixes else expected.training
    assert record is not None, f"{case.model} has a reference on such batches"
    shares: dict[str, bool] = {"shares_prefixes": case.prefixes}
    options = {"layout": f"archon:{case.layout}", "cp_style": case.cp_style}
    engine = build(case.model, context, path=expected.checkpoint, **options, **shares)
    found = observe(engine, case.model, batches_of(case.model, context, torch.float32, **shares))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(errors(found, record)), encoding="utf-8")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
