"""The work of this oracle's ranks: draws weights, runs Megatron-Core, runs Archon, compares.

Megatron and Archon run in separate worlds, because ``shims`` changes torch. They exchange files: the checkpoint, and
the parts of Megatron's gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from archon_core.contracts.batch import Batch
from archon_core.errors import ArchonError, ConfigError, LayoutError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_engine.models.hf_config import load_hf_config
from archon_testing.cases import Case
from archon_testing.compare import compare
from archon_testing.engines import CHECKPOINT, build_engine, write_checkpoints
from archon_testing.exports import weight_map_of
from archon_testing.functions import FunctionReference
from archon_testing.losses import LikelihoodLoss
from archon_testing.measuring import oracle_batches, own_shards, ties_between_stages, train_step
from archon_testing.megatron_oracle.architecture import LIMIT, MegatronSizes, has_experts
from archon_testing.megatron_oracle.gradients import reference_step
from archon_testing.oracle_ranks import MOST_ATTEMPTS, diversify_default_generator, pipeline_of
from archon_testing.pipelines import n_stages_of
from archon_testing.record import Record
from archon_testing.router_watch import LEAST_MARGIN, watching_routers
from archon_testing.verdicts import RankReport, Verdict

Job = tuple[Case, Path]
"""A case, and the folder of its weights."""


def draw_weights(jobs: Sequence[Job]) -> Iterator[ArchonError | None]:
    """Save weights for each case with which its routers' choices are clear, on one process.

    Yields:
        ``None`` after each case, or the error that ends the run.
    """
    diversify_default_generator()
    for case, folder in jobs:
        try:
            _draw(case.reference, folder)
        except ArchonError as error:
            yield error
            return
        yield None


def _draw(case: Case, folder: Path) -> None:
    for attempt in range(MOST_ATTEMPTS):
        write_checkpoints(case, folder, attempt, balances=False)
        with watching_routers() as routers:
            _measure(case, folder)
        if routers.margin > LEAST_MARGIN:
            return
    raise ConfigError(
        f"verify: found no weights, of {MOST_ATTEMPTS} draws, with which all choices of experts are clear by "
        f"{LEAST_MARGIN:.0e}; give another --seed, or a configuration with more experts or fewer layers"
    )


def run_megatron_on_ranks(jobs: Sequence[Job], target: Path) -> Iterator[None]:
    """Run Megatron-Core on each case, which all have the same layout, and save what this rank has of the gradients.

    Args:
        jobs: the cases.
        target: an empty folder.
    """
    from archon_testing.megatron_oracle.model import megatron_groups
    from archon_testing.megatron_oracle.step import run_megatron

    layout = parse_layout(jobs[0][0].layout, backends=backend_table(registry().all(TrainEngineSpec)))
    sizes = MegatronSizes.of(layout, moe=has_experts(jobs[0][0].model_config))
    with megatron_groups(sizes):
        for number, (case, folder) in enumerate(jobs):
            n = max(case.n_mbs, sizes.pipeline)
            step = run_megatron(case.model_config, sizes, batch_of(case), folder / CHECKPOINT, n)
            torch.save(step, target / f"{number}-{dist.get_rank()}.pt")
            yield


def compare_with_megatron(
    jobs: Sequence[Job], target: Path, before: FunctionReference | None = None
) -> Iterator[RankReport]:
    """Run Archon on each case and compare this rank's shards with Megatron's gradients.

    Args:
        jobs: the cases.
        target: the folder to which ``run_megatron_on_ranks`` has written.
        before: called once on every rank before the first engine is built.

    Yields:
        This rank's report of each case.
    """
    diversify_default_generator()
    if before is not None:
        before.load()()
    for number, (case, folder) in enumerate(jobs):
        try:
            record = _measure(case, folder)
        except LayoutError as error:
            # Raised on every rank before the first collective, so the next case can run.
            yield RankReport(Verdict(case, None, str(error)))
            continue
        # Files of our own, holding more than tensors.
        steps = [torch.load(file, weights_only=False) for file in sorted(target.glob(f"{number}-*.pt"))]
        expected, problems = reference_step(steps, weight_map_of(case))
        reference = Record((expected,))
        comparison = compare(replace(record, problems=(*record.problems, *problems)), reference, case.dtype)
        [own] = record.steps
        yield RankReport(
            Verdict(case, replace(comparison, limit=LIMIT)),
            {**own.loss, "gradient norm": own.gradient_norm},
            record.data_rank,
            missing=frozenset(reference.with_copies(record.copies).steps[0].gradients) - frozenset(own.gradients),
            pipeline=pipeline_of(case),
        )


def batch_of(case: Case) -> Batch:
    """The whole batch of a case: the first of the training runs."""
    return oracle_batches(case, load_hf_config(case.model_config))[0]


def _measure(case: Case, folder: Path) -> Record:
    """One step of Archon's engine: its loss, and this rank's shards of the gradients. Collective."""
    engine = build_engine(case, folder / CHECKPOINT, balances=False)
    try:
        problems: list[str] = []
        step = train_step(engine, case, batch_of(case), LikelihoodLoss(), 0, own_shards(engine), problems)
        data_rank = engine.data_ranks.rank
    finally:
        engine.close()
    return Record(
        (replace(step, loss={"loss": step.loss["loss"]}, weights={}),),
        data_rank=data_rank,
        problems=tuple(problems),
        copies=ties_between_stages(case),
        pipelined=n_stages_of(case) > 1,
    )
