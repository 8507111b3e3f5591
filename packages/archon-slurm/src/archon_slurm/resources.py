"""What the processes of a part get, as options of ``sbatch`` and ``srun``, and as a container. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from archon_core.contracts.scheduling import SchedulingSpec

PYTHON_IN_CONTAINER = "python3"
"""The interpreter of an image; this machine's path does not exist there."""


def directives(spec: SchedulingSpec, processes: int) -> list[str]:
    """Options of ``sbatch``.

    Args:
        spec: what each process gets.
        processes: the largest number of processes on a machine, which SLURM sees as one task.

    >>> directives(SchedulingSpec(cpu=4, mem=32, exclude="n7"), 8)
    ['--cpus-per-task=32', '--mem=256G', '--exclude=n7']
    """
    named = {
        "cpus-per-task": spec.cpu and spec.cpu * processes,
        "mem": spec.mem and f"{spec.mem * processes}G",
        "nodelist": spec.nodelist,
        "exclude": spec.exclude,
        "reservation": spec.reservation,
    }
    found = [f"--{name}={value}" for name, value in named.items() if value]
    return [*found, *(["--exclusive"] if spec.exclusive else [])]


def srun_options(spec: SchedulingSpec, processes: int) -> list[str]:
    """Options of ``srun``. Since SLURM 22.05, steps do not inherit ``--cpus-per-task``."""
    inherited = [f"--cpus-per-task={spec.cpu * processes}"] if spec.cpu else []
    return [*inherited, *shlex.split(spec.srun_additional_args)]


def in_container(python: str, command: Sequence[str], spec: SchedulingSpec, *, devices: int) -> list[str]:
    """A command of Python, in the container if there is one.

    Args:
        python: this machine's interpreter.
        command: its arguments.
        spec: names the image.
        devices: accelerators that the container must see.

    >>> in_container("/venv/bin/python", ["-m", "x"], SchedulingSpec(image="i.sif", mount="/a:/a"), devices=8)
    ['apptainer', 'exec', '--nv', '--bind', '/a:/a', 'i.sif', 'python3', '-m', 'x']
    """
    if spec.image is None or spec.container_type == "none":
        return [python, *command]
    options = [*(["--nv"] if devices else []), *(["--bind", spec.mount] if spec.mount else [])]
    return [spec.container_type, "exec", *options, spec.image, PYTHON_IN_CONTAINER, *command]
