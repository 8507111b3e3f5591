"""The reference: one process on the CPU in float64, with the same weights and batches.

It runs in a process that sees no GPU, once per run of the command: beside the first checks on a GPU, or when a group of
checks first asks for it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.rollout import Completion
from archon_rollout.routed_experts import RoutingRecorder
from archon_testing.engines import fill_weights, starting_points
from archon_testing.record import Record, StepRecord
from archon_testing.router_watch import LEAST_MARGIN, watching_routers
from bench.limited import last_lines
from gpu.numerics.models import MODELS, MUON, SEED, ModelName, build
from gpu.numerics.observing import batches_of, observe
from gpu.numerics.sampling import generate
from gpu.records import Context

FILE, LOCK, FAILED = "oracle.pickle", "oracle.lock", "oracle.failed"
ATTEMPTS = 50


@dataclass(frozen=True)
class Reference:
    """A model's numbers.

    Attributes:
        checkpoint: folder with the weights that everything starts from, in float64.
        training: two steps with AdamW, and outputs before.
        prefixes: the same on batches whose sequences share prefixes, each computed apart; ``None`` for models with
            experts.
        muon: the weights after one step with Muon.
        routing: for each step int16 [T, layers, K], the experts that tokens went to; ``None`` without experts.
        completions: greedy ones, of the initial weights; empty for a critic.
    """

    checkpoint: Path
    training: Record
    prefixes: Record | None
    muon: Record
    routing: tuple[Tensor | None, ...]
    completions: tuple[Completion, ...]


def reference(name: ModelName, context: Context) -> Reference:
    """Computed at the first call of any process of a run."""
    return _references(context)[name]


@cache
def _references(context: Context) -> Mapping[ModelName, Reference]:
    path = context.work / FILE
    with _locked(context.work):
        if not path.is_file():
            _compute_apart(context)
    with path.open("rb") as file:
        return pickle.load(file)


def _compute_apart(context: Context) -> None:
    failed, output = context.work / FAILED, context.work / "oracle.log"
    if failed.is_file():
        raise RuntimeError("no reference: its process failed when the first check asked for it")
    call = f"from gpu.numerics.oracle import compute_in; compute_in({str(context.work)!r}, {context.device!r})"
    command, environment = [sys.executable, "-P", "-c", call], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with output.open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        failed.touch()
        raise RuntimeError(f"no reference: its process ended with exit code {done.returncode}\n{last_lines(output)}")


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Only one process computes the references; the others wait. The system releases the lock of one that dies."""
    with (work / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compute_ahead(work: str, device: str) -> None:
    """Compute the references before a group of checks asks for them. In a process without a GPU."""
    with _locked(Path(work)):
        if not (Path(work) / FILE).is_file():
            compute_in(work, device)


def compute_in(work: str, device: str) -> None:
    """Write the references of all models, of the sizes for ``device``, into the folder ``work``."""
    context = Context(device, Path(work))
    references = {name: _compute(name, context) for name in MODELS}
    temporary = context.work / f"{FILE}.partial"
    with temporary.open("wb") as file:
        pickle.dump(references, file)
    temporary.rename(context.work / FILE)


def _compute(name: ModelName, context: Context) -> Reference:
    folder = context.work / "oracle" / name
    for attempt in range(ATTEMPTS):
        engine = build(name, context, dtype="float64")
        fill_weights(engine.parameters, SEED, attempt, starts=starting_points(engine.module))
        checkpoint = folder / str(attempt)
        engine.save(checkpoint, "hf")
        completions = () if name == "critic" else tuple(generate(engine, context))
        batches, routing, steps, outputs = batches_of(name, context, torch.float64), [], [], {}
        margins = []
        for number, batch in enumerate(batches):
            routing.append(_routing(engine.module, batch) if name == "qwen3_moe" else None)
            with watching_routers() as watch:
                record = observe(engine, name, [batch], number)
            margins.append(watch.margin)
            steps += record.steps
            outputs |= record.outputs
        if min(margins) > LEAST_MARGIN:
            training = Record(tuple(steps), outputs)
            muon, prefixes = _muon(name, context, checkpoint), _prefixes(name, context, checkpoint)
            return Reference(checkpoint, training, prefixes, muon, tuple(routing), completions)
    raise AssertionError(f"{name}: no weights in {ATTEMPTS} attempts with which all choices of experts are clear")


def _muon(name: ModelName, context: Context, checkpoint: Path) -> Record:
    engine = build(name, context, path=checkpoint, dtype="float64", optimizer=MUON)
    step = observe(engine, name, batches_of(name, context, torch.float64)[:1], 1).steps[0]
    return Record((StepRecord(step.loss, step.gradient_norm, {}, step.weights),))


def _prefixes(name: ModelName, context: Context, checkpoint: Path) -> Record | None:
    if name == "qwen3_moe":
        return None  # choices of experts were made clear for the other batches
    engine = build(name, context, path=checkpoint, dtype="float64")
    return observe(engine, name, batches_of(name, context, torch.float64, shares_prefixes=True))


@torch.no_grad()
def _routing(module: Any, batch: Any) -> Tensor | None:
    recorder = RoutingRecorder(len(module.layers))
    packed = PackedSequences.from_lengths(batch.lengths, head=HeadInputs(outputs=("logits",)))
    module(batch.input_ids, recorder.watch(packed))
    return recorder.taken()
