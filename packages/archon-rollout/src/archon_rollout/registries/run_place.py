"""Where a run is: the registry of its servers and its folder, from the run's YAML file or from its folder.

Reads the few options that this needs. So a server needs neither archon-train nor the packages that the file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from archon_core.config.partial import read_part
from archon_core.config.root import RootSchema
from archon_core.config.rules import folder_name, option
from archon_core.contracts.server_registry import ServerRegistrySpec
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_core.serving.discovery import Discovery
from archon_core.serving.run_options import PlaceCluster

YAML = (".yaml", ".yml")


@dataclass
class PlaceRollout:
    """``rollout``, with archon-train's defaults.

    Attributes:
        backend: kind and sizes of the servers.
        addresses: ``host:port`` of running servers.
        weight_transport: how the servers receive weights; null for the first transport that they support.
    """

    backend: str = "local"
    addresses: list[str] = field(default_factory=list)
    weight_transport: str | None = None


@dataclass
class PlaceOptions:
    """The options of a run that say where it is, with archon-train's defaults.

    Attributes:
        experiment_name: name of a group of runs.
        trial_name: name of the run.
        cluster: the machines.
        rollout: the inference engine.
    """

    experiment_name: str = option("archon", folder_name)
    trial_name: str = option("trial0", folder_name)
    cluster: PlaceCluster = field(default_factory=PlaceCluster)
    rollout: PlaceRollout = field(default_factory=PlaceRollout)


ROOT = RootSchema(PlaceOptions, {ServerRegistrySpec.kind: ("cluster.name_resolve.type",)})


@dataclass(frozen=True)
class RunPlace:
    """One run.

    Attributes:
        folder: the run folder, which need not exist.
        discovery: the registry of its servers.
        kind: kind of its servers, as ``rollout.backend`` names it.
        weight_transport: how they receive weights, as ``rollout.weight_transport`` names it; ``None`` if it names none.
    """

    folder: Path
    discovery: Discovery
    kind: str
    weight_transport: str | None = None

    @property
    def servers(self) -> Path:
        """The part of the run folder that belongs to servers."""
        return self.folder / "servers"

    @property
    def described(self) -> str:
        """The registry and the run, for messages."""
        return f"the registry {self.discovery.config.type} of {self.discovery.run}"


def find_run(place: Path, overrides: Sequence[str] = ()) -> RunPlace:
    """The run of a YAML file, or of a run folder.

    Args:
        place: the file that ``archon train`` reads, or ``<fileroot>/<experiment_name>/<trial_name>``. A folder whose
            trainer has not started has no ``config.yaml`` yet; its options are then the defaults.
        overrides: those of ``archon train``.

    Raises:
        ConfigError: the file cannot be read, or an option is invalid.
    """
    if place.suffix in YAML or place.is_file():
        return _place(read_part(place, overrides, root=ROOT, registry=registry()))
    path = place.expanduser().absolute()
    name = {"experiment_name": path.parent.name, "trial_name": path.name}
    if overrides or not all(name.values()):
        found = f"overrides ({overrides[0]})" if overrides else "no folder of a run"
        raise ConfigError(
            f"{place}: found {found}; a run folder is <fileroot>/<experiment_name>/<trial_name> and takes no "
            "overrides; give the YAML file of the run with them"
        )
    config = path / "config.yaml"
    options = read_part(config, root=ROOT, registry=registry()) if config.is_file() else PlaceOptions()
    # The folder itself says where the run is: its configuration may have a relative fileroot, or it was renamed.
    cluster = replace(options.cluster, fileroot=str(path.parent.parent))
    return _place(replace(options, cluster=cluster, **name))


def _place(options: PlaceOptions) -> RunPlace:
    folder = Path(options.cluster.fileroot).expanduser() / options.experiment_name / options.trial_name
    kind = options.rollout.backend.partition(":")[0]
    return RunPlace(folder, Discovery.of(options), kind, options.rollout.weight_transport)
