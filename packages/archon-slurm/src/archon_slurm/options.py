"""The options of ``scheduler.type: slurm``: the section ``slurm``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archon_core.config.rules import number, option, path_or_id


def _sbatch_options(value: Sequence[str]) -> str | None:
    if all(text.startswith("-") and "\n" not in text for text in value):
        return None
    return "options of sbatch, one per entry, such as --constraint=a100"


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
        setup: shell commands that each job runs before it starts Python, such as ``module load cuda``.
        requeue: let SLURM requeue the trainer's job after a node failure or a preemption. It resumes from the last
            checkpoint.
        template: file with the job script; null for Archon's, which ``archon slurm script`` prints. See
            docs/launching.md.
        poll_seconds: time between two questions to SLURM about the jobs.
        node_timeout: seconds after which a machine that does not report counts as lost.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None
    gres: str | None = "gpu"
    sbatch: list[str] = field(default_factory=list, metadata={"rule": _sbatch_options, "fix": ""})
    setup: list[str] = field(default_factory=list)
    requeue: bool = True
    template: str | None = option(None, path_or_id)
    poll_seconds: float = option(5.0, number(above=0))
    node_timeout: float = option(60.0, number(above=0))
