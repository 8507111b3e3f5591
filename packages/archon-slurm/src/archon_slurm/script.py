"""Writes the script of a job from a template. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from archon_core.errors import ConfigError
from archon_slurm.options import SlurmOptions

_PLACEHOLDER = re.compile(r"\{\{ *(\w+) *\}\}")
_NEEDS_QUOTES = re.compile(r"[\s\"'\\#]")
_VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE",),
    **dict.fromkeys(("requeue", "no-requeue"), ("REQUEUE", "NO_REQUEUE")),
}
"""Options of ``sbatch`` whose environment variables do not have their names."""

REQUIRED = ("directives", "command")
"""Placeholders without which a template starts nothing."""


@dataclass(frozen=True)
class JobRequest:
    """One job.

    Attributes:
        name: of the job in SLURM.
        title: what it runs, in words.
        nodes: number of machines.
        command: of the process that runs on each machine.
        output: pattern of the file for the output of the script itself: ``%j`` is the job's id, ``%%`` a percent sign.
        folder: working directory.
        devices: accelerators on each machine; 0 for none.
        directives: further options of ``sbatch``.
        srun: further options of ``srun``.
        requeue: whether SLURM may start the job again.
        after: ids of jobs that must have started before.
    """

    name: str
    title: str
    nodes: int
    command: Sequence[str]
    output: str
    folder: Path
    devices: int = 0
    directives: Sequence[str] = ()
    srun: Sequence[str] = ()
    requeue: bool = False
    after: Sequence[str] = field(default=())


def sbatch_options(job: JobRequest, options: SlurmOptions) -> list[str]:
    """The options of ``sbatch`` for a job, one per entry."""
    named = {"partition": options.partition, "account": options.account, "qos": options.qos, "time": options.time_limit}
    found = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--output={job.output}",
        "--open-mode=append",
        f"--chdir={job.folder}",
        *(f"--{name}={value}" for name, value in named.items() if value is not None),
        "--requeue" if job.requeue else "--no-requeue",
    ]
    if job.devices and options.gres is not None:
        found.append(f"--gres={options.gres}:{job.devices}")
    if job.after:
        found.append(f"--dependency=after:{':'.join(job.after)}")
    return [*found, *job.directives, *options.sbatch]


def render_script(job: JobRequest, options: SlurmOptions) -> str:
    """The job's script.

    Raises:
        ConfigError: the template cannot be read, or its placeholders are unknown or incomplete.
    """
    values = {
        "title": shlex.join(job.title.split()),
        "directives": "\n".join(map(_directive, sbatch_options(job, options))),
        "nodes": str(job.nodes),
        "srun_options": shlex.join(job.srun),
        "command": shlex.join(job.command),
        "name": shlex.quote(job.name),
        "folder": shlex.quote(str(job.folder)),
    }
    return fill_template(read_template(options.template), values, source=options.template or "template")


def _directive(option: str) -> str:
    if not option.isprintable():  # a second line would be a command of the script
        raise ConfigError(f"sbatch: found the option {option!r}; allowed are options of one line; correct it")
    if not _NEEDS_QUOTES.search(option):
        return f"#SBATCH {option}"
    # sbatch knows quotes, in which a backslash still escapes, and comments; otherwise it is no shell.
    return '#SBATCH "' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def overriding_variables(script: str) -> set[str]:
    """Environment variables from which ``sbatch`` would take other values for the options of a script.

    >>> sorted(overriding_variables("#SBATCH --partition=gpu\\n#SBATCH --requeue\\n"))
    ['SBATCH_NO_REQUEUE', 'SBATCH_PARTITION', 'SBATCH_REQUEUE']
    """
    found = set()
    for name in re.findall(r'^#SBATCH "?--([a-z-]+)', script, re.MULTILINE):
        found |= {f"SBATCH_{variable}" for variable in _VARIABLES.get(name, (name.upper().replace("-", "_"),))}
    return found


def literally(path: Path) -> str:
    """A path in which SLURM replaces nothing, such as ``%u`` by the user's name."""
    return str(path).replace("%", "%%")


def check_template(options: SlurmOptions) -> None:
    """Raise ConfigError if the template cannot be used."""
    render_script(JobRequest("", "", 1, (), "", Path()), options)


def read_template(path: str | None) -> str:
    """The template in a file; ``None`` for the one of this package."""
    if path is None:
        return resources.files("archon_slurm").joinpath("templates", "job.sh").read_text(encoding="utf-8")
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"slurm.template: cannot read {path}: {error}; correct it, or set it to null") from error


def fill_template(template: str, values: Mapping[str, str], *, source: str) -> str:
    """Replace ``{{name}}`` by values. The shell's own ``$NAME`` and ``${NAME}`` stay as they are.

    Raises:
        ConfigError: a name is unknown, or a required one is missing; or SLURM would not read the directives.
    """
    names = set(_PLACEHOLDER.findall(template))
    allowed = ", ".join(values)
    if unknown := sorted(names - set(values)):
        raise ConfigError(f"slurm.template: {source} has {{{{{unknown[0]}}}}}; allowed are {allowed}; rename it")
    if missing := [name for name in REQUIRED if name not in names]:
        raise ConfigError(
            f"slurm.template: {source} has no {{{{{missing[0]}}}}}, without which the job starts nothing; add it "
            "(`archon slurm script` prints Archon's own)"
        )
    if problem := _unread_directives(template):
        raise ConfigError(f"slurm.template: {source} {problem}")
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def _unread_directives(template: str) -> str:
    """Why SLURM would refuse the script, or ignore the options in it; empty if it reads them."""
    if not template.startswith("#!"):
        return "does not begin with #!, and SLURM takes it for no script; write #!/bin/bash into the first line"
    for line in template.splitlines():
        names = _PLACEHOLDER.findall(line)
        if "directives" in names:
            alone = _PLACEHOLDER.fullmatch(line.rstrip())
            return "" if alone else "has more than {{directives}} in its line; put the directives on a separate line"
        if line.strip() and not line.lstrip().startswith("#"):
            return (
                f"has {line.strip()!r} before {{{{directives}}}}; SLURM reads options up to the first command; move "
                "it below"
            )
    return ""
