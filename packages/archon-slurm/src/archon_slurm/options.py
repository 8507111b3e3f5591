"""The options of ``scheduler.type: slurm``: the section ``slurm``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archon_core.config.rules import number, option, path_or_id


def _sbatch_options(value: Sequence[str]) -> str | None:
    if all(text.startswith("-") and text.isprintable() for text in value):
        return None
    return "options of sbatch, one per entry, such as --constraint=a100"


def _one_word(value: str) -> str | None:
    return None if value and value.isprintable() and " " not in value else "texts of one word"


@dataclass
class SlurmOptions:
    """How the jobs of a run are submitted.

    Attributes:
        partition: partition of all jobs; null for the cluster's default.
        account: account that is charged; null for the user's default.
        qos: quality of service; null for the default.
        time_limit: longest run time of a job, such as ``1-12:00:00``; null for the partition's limit.
        gres: name of the accelerators that jobs ask for, ``gpu`` or with a type ``gpu:a100``; null on a cluster without
            accelerators. With ``cluster.n_gpus_per_node=0`` jobs ask for none.
        sbatch: further options of ``sbatch`` for all jobs, such as ``--constraint=ib``.
        requeue: let SLURM requeue the trainer's job after a node failure or a preemption. It resumes from the last
            checkpoint.
        template: file with the job script, such as Archon's (``archon slurm script`` prints it) with ``module load
            cuda`` added; null for Archon's.
        poll_seconds: time between two questions to SLURM about the jobs.
        node_timeout: seconds after which a machine that does not report counts as lost.
    """

    partition: str | None = option(None, _one_word)
    account: str | None = option(None, _one_word)
    qos: str | None = option(None, _one_word)
    time_limit: str | None = option(None, _one_word)
    gres: str | None = option("gpu", _one_word)
    sbatch: list[str] = field(default_factory=list, metadata={"rule": _sbatch_options, "fix": ""})
    requeue: bool = True
    template: str | None = option(None, path_or_id)
    poll_seconds: float = option(5.0, number(above=0))
    node_timeout: float = option(60.0, number(above=0))
