"""The transport ``disk``: a Hugging Face folder per version under ``cluster.fileroot``, complete when it has its name.

While a version is prepared, each bucket is a weight file in a hidden folder, which servers read as it is announced. The
folder is renamed when all files are flushed. Servers that load whole folders, and newcomers, read it then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archon_core.contracts.weight_transport import TransportContext, WeightBucket
from archon_core.errors import ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice
from archon_rollout.transports.notifying import NotifyingTransport
from archon_rollout.transports.version_folders import VersionFolders

ADAPTER_FOLDERS = "adapter_folders"
"""Option of a transport's context: the number of versions whose adapters stay, each as a folder inside that of its
version, as other servers read them; 0 for tensors among the others."""


class DiskTransport(NotifyingTransport):
    """Implements ``contracts.weight_transport.WeightTransport``.

    Attributes:
        folders: of the published versions.

    Raises:
        ServerError: the context has no folder.
    """

    name = "disk"
    stores_whole_versions = True

    def __init__(self, context: TransportContext) -> None:
        if context.folder is None:
            raise ServerError(
                "weight transport disk: found no folder; set cluster.fileroot to one that trainer and servers share"
            )
        super().__init__(context)
        self.folders = VersionFolders(
            context.folder / "weights",
            bucket_bytes=context.bucket_bytes,
            companions=context.companions,
            adapters_kept=context.options.get(ADAPTER_FOLDERS, 0),
        )

    def folder_of(self, version: int) -> Path:
        """The folder of a published version."""
        return self.folders.folder_of(version)

    def finish(self, manifest: WeightManifest) -> None:
        """Give the folder its name. Raises ServerError if it cannot be written."""
        self.folders.finish(manifest)

    def commit(self, version: int) -> None:
        """Remove old versions."""
        super().commit(version)
        self.folders.prune(version)

    def abort(self) -> None:
        """Remove an unfinished folder."""
        super().abort()
        self.folders.abort()

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        setup = folder_setup(self.folders.begin(manifest), final=self.folder_of(manifest.version))
        return {server.incarnation: setup for server in self._servers}

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        return file_place(self.folders.add(notice.index, notice.tensors, bucket.tensors))


def folder_setup(folder: Path, *, final: Path) -> dict[str, Any]:
    """The setup of an update from a folder.

    Args:
        folder: where the files are now.
        final: where they are when the folder is complete, for servers that load it whole.
    """
    return {"folder": str(folder), "final": str(final)}


def file_place(name: str) -> dict[str, Any]:
    """The place of a bucket in a file of the folder."""
    return {"file": name}
