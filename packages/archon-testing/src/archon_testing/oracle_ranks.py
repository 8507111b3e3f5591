"""The oracle's work on the ranks: computes references on one process, and compares cases with them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from archon_core.errors import ArchonError, ConfigError, LayoutError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.seeding import derive_seed
from archon_testing.cases import Case
from archon_testing.compare import compare, missing_parameters
from archon_testing.engines import CLIP_TO, write_checkpoints
from archon_testing.functions import FunctionReference
from archon_testing.measuring import initial_weights, measure, measure_resumed, save_training_state
from archon_testing.record import Record
from archon_testing.router_watch import LEAST_MARGIN, AmbiguousRoutingError, watching_routers
from archon_testing.verdicts import RankReport, Verdict

RECORD = "record.pt"

MOST_ATTEMPTS = 60
"""Largest number of weight draws: about one in three draws of a small model has unambiguous routing."""


def compute_references(jobs: Sequence[tuple[Case, Path]]) -> Iterator[ArchonError | None]:
    """Compute the reference of each case on one process; write its weights and record to its folder.

    Yields:
        ``None`` after each case, or the error that ends the run.
    """
    diversify_default_generator()
    for case, folder in jobs:
        try:
            record = _clear_reference(case.reference, folder)
            _check_clipped(record)
        except ArchonError as error:
            yield error
            return
        torch.save(replace(record, tokens=None), folder / RECORD)
        yield None


def _clear_reference(case: Case, folder: Path) -> Record:
    """The record of one process, from weights drawn such that all routing decisions are unambiguous."""
    for attempt in range(MOST_ATTEMPTS):
        write_checkpoints(case, folder, attempt)
        spec = registry().model_for(case.model_config["model_type"], case.model)
        with (
            suppress(AmbiguousRoutingError),
            watching_routers(of_others=bool(spec.rounds_inside), stops=True) as routers,
        ):
            record = measure(case, folder, folder / "unused", with_state=True)
        if routers.is_clear:
            return replace(record, initial=initial_weights(case, folder))
    raise ConfigError(
        f"verify: found no weights, of {MOST_ATTEMPTS} draws, with which all choices of experts are clear by "
        f"{LEAST_MARGIN:.0e} and some expert gets no token (last: {routers.margin:.1e}, {routers.n_with_idle} of "
        f"{routers.n_passes} passes); give another --seed, or a configuration with more experts or fewer layers"
    )


def compare_with_references(
    jobs: Sequence[tuple[Case, Path]], scratch: Path, before: FunctionReference | None = None
) -> Iterator[RankReport]:
    """Run each case in a world of its layout's size and compare it with its reference.

    Args:
        jobs: cases and the folders of their references. Cases that resume on one process must be last.
        scratch: an empty folder of this world.
        before: called once on every rank before the first engine is built.

    Yields:
        This rank's report of each case.
    """
    diversify_default_generator()
    if before is not None:
        before.load()()
    run = CaseRunner(scratch, [case for case, _ in jobs])
    for case, folder in jobs:
        try:
            record = run(case, folder)
        except (LayoutError, ConfigError) as error:
            # Raised on every rank before the first collective, so the next case can run.
            yield RankReport(Verdict(case, None, str(error)))
            continue
        if record is None:
            yield RankReport(Verdict(case, None), takes_part=False)
            continue
        reference = load_record(folder)
        verdict = Verdict(case, compare(record, reference, case.compute_dtype))
        yield RankReport(
            verdict,
            _reported(record),
            record.data_rank,
            _checksum(record.outputs),
            missing_parameters(record, reference),
            pipeline_of(case.last),
        )


class CaseRunner:
    """Runs cases sequentially on every rank of their world.

    A training run saves the state that resumed runs of the same model start from, so no step is trained twice.

    Args:
        scratch: an empty folder of the world.
        cases: the cases to run.
    """

    def __init__(self, scratch: Path, cases: Sequence[Case]) -> None:
        self._scratch = scratch
        self._resumed = {_without_layout(case) for case in cases if case.check == "resume"}
        self._saved: dict[str, Path] = {}
        self._number = 0
        self._has_left = False

    def __call__(self, case: Case, folder: Path) -> Record | None:
        """The record of a case; ``None`` on ranks that take no part in a run on one process.

        Raises:
            ArchonError: from the engine.
        """
        self._number += 1
        own, key = self._scratch / str(self._number), _without_layout(case)
        if case.check != "resume":
            saves = case.check == "training" and key in self._resumed and key not in self._saved
            target = own.with_name(f"{own.name}-state") if saves else None
            record = measure(case, folder, own, save_to=target)
            if target is not None:
                self._saved[key] = target
            return record
        if key not in self._saved:
            save_training_state(case, folder, own)
            self._saved[key] = own
        if resumes_on_one_process(case) and dist.is_initialized():
            rank = dist.get_rank()
            dist.destroy_process_group()
            self._has_left = rank > 0
        return None if self._has_left else measure_resumed(case.last, folder, self._saved[key])


def resumes_on_one_process(case: Case) -> bool:
    """Whether several ranks save the state and one process resumes."""
    return case.resume_on is not None and _world_size(case.resume_on) == 1 < _world_size(case.layout)


def _world_size(layout: str) -> int:
    return parse_layout(layout, backends=backend_table(registry().all(TrainEngineSpec))).world_size


def _without_layout(case: Case) -> str:
    """Everything that the values of a case depend on, as text."""
    return repr(case.reference)


def pipeline_of(case: Case) -> int:
    """The first rank of this rank's pipeline, whose ranks together hold the model."""
    if not dist.is_initialized():
        return 0
    layout = parse_layout(case.layout, backends=backend_table(registry().all(TrainEngineSpec)))
    grid = layout.parallel_dims(moe=True).dense_grid
    return grid.ranks_along("pp", dist.get_rank())[0]


@lru_cache(maxsize=8)
def load_record(folder: Path) -> Record:
    """The reference in a folder."""
    # A file of our own, holding more than tensors.
    return torch.load(folder / RECORD, weights_only=False)


def diversify_default_generator() -> None:
    """Seed torch's default generator differently on every rank of every world.

    Ranks are forked from one process, so a draw that ignores the run's seed would be equal on all ranks and go
    unnoticed.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(derive_seed(0, "verify rank", size, rank))


def _reported(record: Record) -> dict[str, float]:
    return {
        f"{name} (step {number})": value
        for number, step in enumerate(record.steps, start=1)
        for name, value in {**step.loss, "gradient norm": step.gradient_norm}.items()
    }


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


def _check_clipped(record: Record) -> None:
    smallest = min(step.gradient_norm for step in record.steps)
    if not smallest > CLIP_TO:
        raise ConfigError(
            f"verify: found a gradient norm of {smallest:.3g} on one process; it must be above {CLIP_TO}, or clipping "
            "would not show a wrong norm; give a configuration with usual sizes"
        )
