"""Calls the programs of SLURM. Every call has a time limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence

from archon_core.errors import ArchonError, ConfigError
from archon_slurm.script import overriding_variables
from archon_slurm.states import UNKNOWN, JobState, parse_job

PROGRAMS = ("sbatch", "srun", "scontrol", "scancel")
CALL_SECONDS = 60.0
REQUEUE_SECONDS = 60.0


class SlurmError(ArchonError):
    """SLURM refused a call, or does not answer."""


def check_programs() -> None:
    """Raise SlurmError if this machine lacks a program."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SlurmError(
            f"scheduler.type: found slurm, and no {', '.join(missing)} on this machine; run archon train where the "
            "cluster's jobs are submitted, or set scheduler.type=local"
        )


def submit(script: str, *options: str) -> str:
    """Submit a job with further options of ``sbatch``; returns its id.

    Raises:
        ConfigError: SLURM refuses it.
        SlurmError: SLURM does not answer.
    """
    # Variables such as SBATCH_ACCOUNT would win over the options of the script, which come from the configuration.
    own = {name: value for name, value in os.environ.items() if name not in overriding_variables(script)}
    done = _call(["sbatch", "--parsable", *options], text=script, environment=own)
    if done.returncode:
        raise ConfigError(f"sbatch refused the job: {_message(done)}{_advice(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def job_state(id: str) -> JobState:
    """The state of a job; ``UNKNOWN`` if SLURM does not list it.

    Raises:
        SlurmError: SLURM does not answer.
    """
    done = _call(["scontrol", "--oneliner", "show", "job", id])
    if done.returncode == 0 and done.stdout.strip():
        try:
            return parse_job(done.stdout)
        except ValueError as error:
            raise SlurmError(f"scontrol show job {id}: {error}") from error
    if "Invalid job id" in done.stderr:
        return JobState(id, UNKNOWN, "SLURM does not list it any more")
    raise SlurmError(f"scontrol show job {id}: {_message(done)}")


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs: SIGTERM to all their processes, and SIGKILL after SLURM's ``KillWait``."""
    _control(["scancel", *ids], "scancel")


def requeue(id: str, *, exclude: Sequence[str] = ()) -> None:
    """Start a job again, also one that has ended, without the machines ``exclude``.

    Raises:
        SlurmError: SLURM refuses it for ``REQUEUE_SECONDS``, as it does while it still ends the job.
    """
    deadline = time.monotonic() + REQUEUE_SECONDS
    while (done := _call(["scontrol", "requeue", id])).returncode:
        if time.monotonic() > deadline:
            raise SlurmError(f"scontrol requeue {id}: {_message(done)}")
        time.sleep(1)
    if exclude:
        _control(["scontrol", "update", f"jobid={id}", f"excnodelist={','.join(exclude)}"], "scontrol update")


def _control(command: list[str], what: str) -> None:
    done = _call(command)
    if done.returncode and not re.search(r"Invalid job id|already completed|Job/step already", done.stderr):
        raise SlurmError(f"{what}: {_message(done)}")


def _call(
    command: list[str], *, text: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        # Ctrl-C goes to every process of the terminal's session. An sbatch that it ends may have submitted the job.
        return subprocess.run(
            command,
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise SlurmError(f"found no {command[0]}; run on a machine of the cluster, with SLURM's programs") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: no answer within {CALL_SECONDS:g} s") from error


def _message(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"


def _advice(error: str) -> str:
    if "generic resource" in error or "gres" in error.lower():
        return "\nset slurm.gres to the name of the cluster's accelerators, or to null on a cluster without any"
    if "partition" in error.lower():
        return "\nset slurm.partition to one that `sinfo` lists"
    return ""
