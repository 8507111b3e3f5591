"""Loads Hugging Face weights into a sharded module, checking files against their seal while they are read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import nn

from archon_core.contracts.decisions import Decision
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_engine.assembly.blueprint import Blueprint
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.seal import check_share
from archon_engine.models.initialize import initialize_weights
from archon_engine.parallel.shards import local_part


def load_weights(module: nn.Module, plan: Blueprint, folder: Path, *, role: str, seed: int) -> list[Decision]:
    """Fill this process's part of a model from a Hugging Face folder. Returns decisions, such as for missing weights
    that are drawn from the seed.

    Collective, because damage that only some ranks read must raise on all.

    Raises:
        WeightsError: on every rank, if the checkpoint is damaged or does not fit.
    """
    ranks = Ranks.of_process_group()
    failure: Exception | None = None
    with ThreadPoolExecutor(1, "archon-check") as pool:
        checking = pool.submit(check_share, folder, ranks)  # only folders that Archon wrote have checksums
        try:
            report = load_hf_weights(
                module, plan.weights, folder, local_boxes=lambda _name, weight: [local_part(weight)]
            )
        except Exception as error:
            failure = error
    with failing_together(ranks):
        checking.result()  # first, so that damage is reported as damage, whatever error it caused in loading
    with failing_together(ranks):
        if failure is not None:
            raise failure
    added = () if plan.adapter_weights is None else plan.adapter_weights.shapes
    initialize_weights(
        module,
        seed,
        plan.hf_config.initializer_range,
        only=(*report.initialised, *added),
        ties=plan.weights.ties,
        local_part=local_part,
    )
    decisions = [
        Decision(f"{role}.path", f"{len(names)} tensors such as {names[0]}", "not loaded", reason)
        for reason, names in report.dropped.items()
    ]
    decisions += [
        Decision(f"{role}.path", f"{name} of {folder}", "random, from the seed", "the checkpoint lacks it")
        for name in report.initialised
    ]
    return report.plan.decisions(f"{role}.path") + decisions
