"""The transport ``disk``: a Hugging Face folder per version under ``cluster.fileroot``, complete when it has its name.

While a version is prepared, each bucket is a weight file in a hidden folder, which servers read as it is announced. The
folder is renamed when all files are flushed. Servers that load whole folders, and newcomers, read it then.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from archon_core.contracts.weight_transport import TransportContext, WeightBucket
from archon_core.errors import ServerError
from archon_core.serving.manifest import WeightManifest, plan_buckets
from archon_core.serving.update import BucketNotice
from archon_engine.checkpoint.publication import publish_folder, remove_folder, remove_leftovers
from archon_engine.checkpoint.safetensors_file import SafetensorsWriter
from archon_rollout.transports.notifying import NotifyingTransport

logger = logging.getLogger(__name__)

KEPT = 2
"""Folders of committed versions that stay: a newcomer may be reading the older one."""

INDEX_FILE = "model.safetensors.index.json"


class DiskTransport(NotifyingTransport):
    """Implements ``contracts.weight_transport.WeightTransport``.

    Raises:
        ServerError: the context has no folder.
    """

    name = "disk"

    def __init__(self, context: TransportContext) -> None:
        if context.folder is None:
            raise ServerError(
                "weight transport disk: found no folder; set cluster.fileroot to one that trainer and servers share"
            )
        super().__init__(context)
        self._root = context.folder / "weights"
        self._writing = ExitStack()
        self._folder: Path | None = None
        self._n_files = 0
        self._files: dict[str, str] = {}
        remove_leftovers(self._root)

    def folder_of(self, version: int) -> Path:
        """The folder of a published version."""
        return self._root / f"v{version}"

    def finish(self, manifest: WeightManifest) -> None:
        """Write the index, flush everything, and give the folder its name.

        Raises:
            ServerError: the folder cannot be written.
        """
        assert self._folder is not None, "prepare() comes first"
        index = {"metadata": {"total_size": manifest.n_bytes, "version": manifest.version}, "weight_map": self._files}
        try:
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            if self._context.companions is not None:
                for file in sorted(self._context.companions.iterdir()):
                    if file.suffix in (".json", ".txt", ".model", ".jinja") and file.name != INDEX_FILE:
                        shutil.copyfile(file, self._folder / file.name)
            self._writing.close()
        except OSError as error:
            raise _cannot_write(self._root, error) from error
        self._folder = None

    def commit(self, version: int) -> None:
        """Remove old versions."""
        super().commit(version)
        versions = sorted(int(path.name[1:]) for path in self._root.glob("v*") if path.name[1:].isdigit())
        for old in [other for other in versions if other != version][: -(KEPT - 1) or None]:
            try:
                remove_folder(self.folder_of(old))
            except OSError as error:  # costs disk space, not the run
                logger.warning(
                    "cannot remove the weights of version %d: %s; remove %s", old, error, self.folder_of(old)
                )

    def abort(self) -> None:
        """Remove an unfinished folder."""
        super().abort()
        if self._folder is not None:
            self._folder = None
            writing, self._writing = self._writing, ExitStack()
            writing.__exit__(ServerError, ServerError("aborted"), None)

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        self._n_files = len(plan_buckets(manifest.tensors, self._context.bucket_bytes))
        self._files = {}
        final = self.folder_of(manifest.version)
        try:
            self._folder = self._writing.enter_context(publish_folder(final))
        except OSError as error:
            raise _cannot_write(self._root, error) from error
        setup = {"folder": str(self._folder), "final": str(final)}
        return {server.incarnation: setup for server in self._servers}

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        assert self._folder is not None, "prepare() comes first"
        name = f"model-{notice.index + 1:05}-of-{self._n_files:05}.safetensors"
        entries = {entry.name: (getattr(torch, entry.dtype), entry.shape) for entry in notice.tensors}
        try:
            with SafetensorsWriter(self._folder / name, entries) as writer:
                for entry in notice.tensors:
                    writer.write(entry.name, bucket.tensors[entry.name])
        except OSError as error:
            raise _cannot_write(self._root, error) from error
        self._files |= dict.fromkeys(entries, name)
        return {"file": name}


def _cannot_write(folder: Path, error: OSError) -> ServerError:
    return ServerError(f"weight transport disk: cannot write below {folder}: {error}; check disk space and permissions")
