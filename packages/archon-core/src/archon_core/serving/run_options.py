"""Options of a run that its servers read by themselves, from a file whose packages they may not have."""

from __future__ import annotations

from dataclasses import dataclass, field

from archon_core.config.rules import option, path_or_id
from archon_core.contracts.server_registry import NameResolveConfig


@dataclass
class PlaceCluster:
    """``cluster``, with archon-train's defaults.

    Attributes:
        fileroot: parent of run folders.
        name_resolve: the registry of inference servers.
    """

    fileroot: str = option("runs", path_or_id)
    name_resolve: NameResolveConfig = field(default_factory=NameResolveConfig)
