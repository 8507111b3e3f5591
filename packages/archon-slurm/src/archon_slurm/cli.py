"""``archon slurm``: the SLURM jobs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archon_core.cli.console import print_json, print_table
from archon_core.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Show, scale and cancel the SLURM jobs of a run.")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


@app.command()
def status(
    run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print the jobs as JSON.")] = False
) -> None:
    """Show the jobs of a run: state, machines, attempts. Exit code 1 if the trainer's job does not run or wait."""
    from archon_slurm import client
    from archon_slurm.jobs_file import JobsFile

    jobs = JobsFile(_slurm_folder(run)).read()
    named = [("trainer", jobs.trainer)] if jobs.trainer else []
    named += [(f"server {number}", id) for number, id in sorted(jobs.servers.items())]
    states = [(name, client.job_state(id)) for name, id in named]
    if as_json:
        keys = ("id", "state", "reason", "restarts", "hosts")
        print_json([{"part": name, **{key: getattr(state, key) for key in keys}} for name, state in states])
    else:
        rows = [(n, s.id, s.state, s.reason, str(s.restarts), " ".join(s.hosts)) for n, s in states]
        print_table(("part", "job", "state", "reason", "restarts", "machines"), rows)
    if not any(name == "trainer" and not state.has_ended for name, state in states):
        raise typer.Exit(1)


@app.command()
def scale(run: RunFolder, servers: Annotated[int, typer.Argument(min=0, help="Number of servers to have.")]) -> None:
    """Submit further servers of a running run, or end some: those finish their requests and leave the run."""
    from archon_slurm import client
    from archon_slurm.jobs_file import JobsFile
    from archon_slurm.server_jobs import ServerJobs

    folder = _slurm_folder(run)
    trainer = client.job_state(JobsFile(folder).read().trainer)
    if trainer.has_ended or not trainer.belongs_to(run):
        raise ConfigError(f"{run}: found no running trainer ({trainer}); start the run before you scale its servers")
    ServerJobs(folder, print).scale(servers)


@app.command()
def cancel(run: RunFolder) -> None:
    """Cancel all jobs of a run. Ranks stop after their step and write a checkpoint if SLURM's KillWait suffices."""
    from archon_slurm import client
    from archon_slurm.jobs_file import JobsFile

    states = [client.job_state(id) for id in JobsFile(_slurm_folder(run)).read().all]
    ids = [state.id for state in states if not state.has_ended and state.belongs_to(run)]
    if ids:
        client.cancel(ids)
    print(f"cancelled: {', '.join(ids) or 'nothing'}")


@app.command()
def script() -> None:
    """Print the template of job scripts. Set slurm.template to a changed copy of it."""
    from archon_slurm.script import read_template

    print(read_template(None), end="")


def _slurm_folder(run: Path) -> Path:
    folder = run / "slurm"
    if not (folder / "jobs.json").exists():
        raise ConfigError(f"{run}: found no slurm/jobs.json; give the folder of a run that was started by SLURM")
    return folder
