"""The reference model's log-probabilities of all answers, computed once before training.

A pair needs two numbers, the sums over its answers. They are kept in the run folder with a fingerprint of everything
that they depend on; a resumed run reads them and builds no reference model. So the reference never shares the memory
with the model that is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.data import Dataset
from archon_core.contracts.decisions import Decision
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import DamagedError
from archon_core.ranks.failing_together import failing_together
from archon_engine.checkpoint.publication import publish_folder
from archon_engine.checkpoint.seal import check_file, read_seal, seal_whole, write_seal
from archon_rl.fingerprint import Fingerprint
from archon_rl.losses.preference import sequence_logprobs
from archon_rl.preference_encoding import preference_batch
from archon_rl.trainer.checkpointing import resumed_checkpoint
from archon_rl.trainer.evaluation import evaluated_size
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.task import Task
from archon_train.run.context import RunContext

FOLDER = "reference"
"""In the run folder."""
FILE = "logprobs.safetensors"

_SECTION = ("path", "model_config", "init_from_scratch", "dtype")
"""Options of the reference that its log-probabilities depend on."""


@dataclass(frozen=True)
class ReferenceModel:
    """The reference and how to build it.

    Attributes:
        section: its section of the configuration.
        request: the log-probabilities that the loss reads.
        opened: builds its engine, and closes it at the end of the block.
    """

    section: Any
    request: OutputRequest
    opened: Callable[[], AbstractContextManager[SharedEngine]]


@dataclass(frozen=True)
class ReferenceLogprobs:
    """Sums over the chosen and the rejected answer, float64 [records, 2]; NaN for records that the run does not use.

    Attributes:
        train: of the training records.
        validation: of the held-out records.
    """

    train: Tensor
    validation: Tensor


def reference_logprobs(
    run: RunContext, task: Task, total_steps: int, known: Mapping[str, Fingerprint], model: ReferenceModel
) -> ReferenceLogprobs:
    """The log-probabilities of all records that the run uses: those of a resumed run's folder, and the others from the
    reference model. Collective.

    Args:
        known: fingerprints of the run's inputs.

    Raises:
        DamagedError: on every rank, the file in the run folder is damaged.
        KeyboardInterrupt: the user asked to stop.
    """
    fingerprint = _fingerprint(run, task, known, model)
    found = _read(run, task, fingerprint)
    n_evaluated = evaluated_size(task.validation, run.config.trainer.eval_size)
    missing = {
        "train": _missing(found.train, _drawn(task, total_steps)),
        "validation": _missing(found.validation, range(n_evaluated)),
    }
    if any(missing.values()):
        _compute(run, task, model, found, missing)
        _write(run, found, fingerprint)
    return found


def _drawn(task: Task, total_steps: int) -> Sequence[int]:
    """The training records that the steps of the run draw."""
    cursor = task.cursor
    if total_steps * cursor.batch_size >= cursor.n_records:
        return range(cursor.n_records)
    return sorted({index for step in range(total_steps) for index in cursor.indices(step)})


def _missing(values: Tensor, needed: Sequence[int]) -> list[int]:
    unknown = values.isnan().any(1).tolist()
    return [index for index in needed if unknown[index]]


def _compute(
    run: RunContext,
    task: Task,
    model: ReferenceModel,
    found: ReferenceLogprobs,
    missing: Mapping[str, Sequence[int]],
) -> None:
    """Fill ``found`` at the records ``missing``."""
    total, done = sum(len(indices) for indices in missing.values()), 0
    run.progress.start(total, label="reference")
    size = run.config.data.batch_size
    with model.opened() as engine:
        for split, indices in missing.items():
            dataset, values = getattr(task, split), getattr(found, split)
            for start in range(0, len(indices), size):
                chunk = list(indices[start : start + size])
                values[chunk], n_tokens = _sums(engine, task, dataset, chunk, model.request)
                done += len(chunk)
                run.progress.update(done, n_tokens=n_tokens)
                if run.ranks.any(run.stop.requested):
                    raise KeyboardInterrupt("stopped while the reference's log-probabilities were computed")


def _sums(
    engine: SharedEngine, task: Task, dataset: Dataset, indices: Sequence[int], request: OutputRequest
) -> tuple[Tensor, int]:
    """float64 [records, 2], and the number of tokens."""
    batch = preference_batch(task.encoder, [dataset[index] for index in indices])
    logprobs = engine.forward_batch(batch, request)["logprobs"].cpu()
    return sequence_logprobs(logprobs, batch).view(-1, 2), batch.n_tokens


def _fingerprint(run: RunContext, task: Task, known: Mapping[str, Fingerprint], model: ReferenceModel) -> str:
    """A checksum of what the numbers depend on, without the layout, and without the files of the model: a run keeps the
    numbers of its start."""
    encoder = task.encoder
    content = {
        "inputs": {name: known[name].digest for name in ("data", "validation", "tokenizer", "chat_template")},
        "encoding": {"fields": asdict(encoder.fields), "use_chat_template": encoder.use_chat_template},
        "records": [len(task.train), len(task.validation)],
        "reference": {name: getattr(model.section, name) for name in _SECTION},
        "temperature": model.request.temperature,
        "seed": run.config.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _read(run: RunContext, task: Task, fingerprint: str) -> ReferenceLogprobs:
    """The values in the folder of a resumed run; unknown ones are NaN. The first rank reads and broadcasts."""
    empty = ReferenceLogprobs(_unknown(len(task.train)), _unknown(len(task.validation)))
    if resumed_checkpoint(run) is None:
        return empty
    found: ReferenceLogprobs | None = None
    changed = False
    file = run.folder.path / FOLDER / FILE
    with failing_together(run.ranks):
        if run.ranks.is_first and file.is_file():
            found = _load(file, fingerprint)
            changed = found is None
    found, changed = run.ranks.broadcast((found, changed))
    if changed:
        reason = "records, tokenizer or options of the reference changed"
        run.record([Decision("trainer.resume", "the reference's log-probabilities of the run", "new ones", reason)])
    return empty if found is None else found


def _load(file: Path, fingerprint: str) -> ReferenceLogprobs | None:
    """The content of ``file``; ``None`` if it has another fingerprint."""
    from safetensors import SafetensorError, safe_open

    try:
        seal = read_seal(file.parent) or {}
        if FILE not in seal:
            raise DamagedError(f"{file}: found no checksum of it in {file.parent}")
        check_file(file, seal[FILE])
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return ReferenceLogprobs(opened.get_tensor("train"), opened.get_tensor("validation"))
    except SafetensorError as error:
        raise _with_advice(DamagedError(f"{file}: cannot read the file ({error})"), file) from error
    except DamagedError as error:
        raise _with_advice(error, file) from None


def _with_advice(error: DamagedError, file: Path) -> DamagedError:
    error.add_note(f"to compute the reference's log-probabilities again, remove {file.parent} and run again")
    return error


def _write(run: RunContext, values: ReferenceLogprobs, fingerprint: str) -> None:
    from safetensors.torch import save_file

    with failing_together(run.ranks):
        if run.ranks.is_first:
            with publish_folder(run.folder.path / FOLDER) as folder:
                tensors = {"train": values.train, "validation": values.validation}
                save_file(tensors, folder / FILE, metadata={"fingerprint": fingerprint})
                write_seal(folder, {FILE: seal_whole(folder / FILE)})


def _unknown(n_records: int) -> Tensor:
    return torch.full((n_records, 2), torch.nan, dtype=torch.float64)
