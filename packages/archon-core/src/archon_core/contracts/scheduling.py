"""The options that say where the processes of an engine run and what they get: names and meanings are AReaL's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from archon_core.config.rules import POSITIVE, one_of, option
from archon_core.errors import ConfigError
from archon_core.ranks.host_list import expand_hosts

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
"""Variables that launchers set."""

_OF_LAUNCHERS = ("TORCHELASTIC_", "ARCHON_LAUNCHER_")
"""Beginnings of further variables that launchers set."""

_LOADS_CODE = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONSTARTUP", "BASH_ENV")
"""Variables that make programs load code, as all that begin with ``LD_`` do; a configuration file sets none
(docs/security.md)."""


def _variables(value: Mapping[str, str]) -> str | None:
    if any(name in _LOADS_CODE or name.startswith("LD_") for name in value):
        named = ", ".join(_LOADS_CODE)
        return f"variables that load no code, unlike {named} and LD_...; export those before you start archon"
    wrong = [name for name in value if not _NAME.fullmatch(name) or name in _PLACE or name.startswith(_OF_LAUNCHERS)]
    if wrong:
        others = ", ".join([*_PLACE, *(f"{beginning}..." for beginning in _OF_LAUNCHERS)])
        return f"names of variables other than {others}"
    return "values without NUL characters" if any("\0" in text for text in value.values()) else None


def _one_line(value: str) -> str | None:
    return None if value.isprintable() else "texts of one line"


def _image(value: str) -> str | None:
    return None if value.isprintable() and value[:1] not in ("", "-") else "names or files of images, on one line"


def _hosts(value: str) -> str | None:
    try:
        expand_hosts(value)
    except ConfigError:
        return "lists of machines such as n[1-3,7],gpu-[08-11]"
    return _one_line(value) if value else "lists of machines such as n[1-3,7]; null stands for none"


def _srun_options(value: str) -> str | None:
    try:
        words = shlex.split(value)
    except ValueError:
        words = [""]
    fine = all(word.startswith("-") and word != "--" for word in words) and value.isprintable() and "$" not in value
    return None if fine else "options of srun in the form --name=value, without shell variables"


@dataclass
class SchedulingSpec:
    """What the processes of an engine get (``actor.scheduling_spec``, ``rollout.scheduling_spec``).

    Attributes:
        cpu: CPU cores per process; null for the launcher's default.
        mem: memory in GB per process; null for the launcher's default.
        env_vars: environment variables of the processes.
        image: container image to run them in; null for none.
        container_type: program that runs the image: ``apptainer``, or ``none`` to run without the image.
        mount: folders that the container sees, as ``host:container``, separated by commas.
        nodelist: machines to use, such as ``n[1-4]``; null for any.
        exclude: machines not to use; null for none.
        reservation: name of a reservation; null for none.
        exclusive: use whole machines.
        srun_additional_args: further options of ``srun``, such as ``--mpi=pmi2 --unbuffered``.
    """

    cpu: int | None = option(None, POSITIVE)
    mem: int | None = option(None, POSITIVE)
    env_vars: dict[str, str] = field(default_factory=dict, metadata={"rule": _variables, "fix": ""})
    image: str | None = option(None, _image)
    container_type: str = option("apptainer", one_of("apptainer", "none"))
    mount: str = option("", _one_line)
    nodelist: str | None = option(None, _hosts)
    exclude: str | None = option(None, _hosts)
    reservation: str | None = option(None, _one_line)
    exclusive: bool = False
    srun_additional_args: str = option("", _srun_options)


@dataclass
class SchedulingStrategy:
    """Which engines share processes (``ref.scheduling_strategy``).

    Attributes:
        type: ``separation`` gives the engine its own ranks, ``colocation`` puts it on those of ``target``, which
            must have as many; null runs the models of a trainer, and ``rollout.backend=local``, in the actor's
            processes.
        target: section of the engine to share processes with.
    """

    type: str | None = option(None, one_of("separation", "colocation"))
    target: str | None = option(None, one_of("actor", "critic", "ref", "teacher", "reward_model", "rollout"))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Conflicting options."""
        if self.type == "colocation" and self.target is None:
            yield (
                "target",
                "found nothing with type=colocation; allowed is another engine, such as actor",
            )
