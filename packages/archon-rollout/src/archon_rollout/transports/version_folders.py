"""Folders of published versions, such as ``weights/v7``: Hugging Face format, one weight file per bucket, and complete
when they have their name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from archon_core.errors import ServerError
from archon_core.serving.adapter_versions import CONFIG_FILE, FOLDER, WEIGHTS_FILE, is_adapter
from archon_core.serving.manifest import TensorEntry, WeightManifest, plan_buckets
from archon_engine.checkpoint.publication import publish_folder, remove_folder, remove_leftovers
from archon_engine.checkpoint.safetensors_file import SafetensorsWriter

logger = logging.getLogger(__name__)

KEPT = 2
"""Whole folders of committed versions that stay: a newcomer may be reading the older one."""

INDEX_FILE = "model.safetensors.index.json"
COPIED = (".json", ".txt", ".model", ".jinja")


class VersionFolders:
    """Writes one version at a time. Removes what a killed run has left.

    Args:
        root: the folder ``weights``.
        bucket_bytes: size of the buckets that ``add`` gets.
        companions: folder of the files that belong beside the weights; ``None`` without.
        adapters_kept: write adapters into a folder in PEFT's format, ``adapter`` inside that of a version, and keep
            this folder for so many versions; 0 writes them among the other tensors.
    """

    def __init__(
        self, root: Path, *, bucket_bytes: int, companions: Path | None = None, adapters_kept: int = 0
    ) -> None:
        self._root, self._bucket_bytes, self._companions = root, bucket_bytes, companions
        self._adapters_kept = adapters_kept
        self._adapters: dict[str, torch.Tensor] = {}
        self._writing = ExitStack()
        self._folder: Path | None = None
        self._n_files = 0
        self._files: dict[str, str] = {}
        remove_leftovers(root)

    def folder_of(self, version: int) -> Path:
        """The folder of a published version."""
        return self._root / f"v{version}"

    def begin(self, manifest: WeightManifest) -> Path:
        """Start a version; returns the hidden folder in which it is written. Raises ServerError if it cannot be."""
        self.abort()
        self._n_files, self._files = len(plan_buckets(manifest.tensors, self._bucket_bytes)), {}
        self._adapters = {}
        with self._writable():
            self._folder = self._writing.enter_context(publish_folder(self.folder_of(manifest.version)))
        return self._folder

    def file_of(self, index: int) -> str:
        """The name of the weight file of a bucket."""
        return f"model-{index + 1:05}-of-{self._n_files:05}.safetensors"

    def add(self, index: int, entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor]) -> str:
        """Write one bucket; returns the name of its file. Raises ServerError if it cannot be written."""
        assert self._folder is not None, "begin() comes first"
        name = self.file_of(index)
        if self._adapters_kept:
            own = [entry for entry in entries if is_adapter(entry.name)]
            # Small, and one file in the end. The bucket's memory is used again.
            self._adapters |= {entry.name: tensors[entry.name].cpu().clone() for entry in own}
            entries = [entry for entry in entries if not is_adapter(entry.name)]
        described = {entry.name: (getattr(torch, entry.dtype), entry.shape) for entry in entries}
        with self._writable(), SafetensorsWriter(self._folder / name, described) as writer:
            for entry in entries:
                writer.write(entry.name, tensors[entry.name].cpu())
        self._files |= dict.fromkeys(described, name)
        return name

    def finish(self, manifest: WeightManifest) -> None:
        """Write the index, flush everything, and give the folder its name. Raises ServerError if it cannot be."""
        assert self._folder is not None, "begin() comes first"
        index = {"metadata": {"total_size": manifest.n_bytes, "version": manifest.version}, "weight_map": self._files}
        with self._writable():
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            if self._companions is not None:
                for file in sorted(self._companions.iterdir()):
                    if file.suffix in COPIED and file.name != INDEX_FILE:
                        shutil.copyfile(file, self._folder / file.name)
            if self._adapters:
                self._write_adapters(self._folder)
            self._writing.close()
        self._folder = None

    def _write_adapters(self, folder: Path) -> None:
        target = folder / FOLDER
        target.mkdir()
        # Beside the weights, its configuration would make transformers look for adapters there.
        (folder / CONFIG_FILE).rename(target / CONFIG_FILE)
        described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._adapters.items()}
        with SafetensorsWriter(target / WEIGHTS_FILE, described) as writer:
            for name, tensor in self._adapters.items():
                writer.write(name, tensor)
        self._adapters = {}

    def prune(self, version: int) -> None:
        """Remove the folders of other versions than ``version`` and the ones before it, ``KEPT`` in all.

        The adapters of some earlier ones stay. A resumed run has also versions after it, of steps that it repeats.
        """
        versions = {int(path.name[1:]) for path in self._root.glob("v*") if path.name[1:].isdigit()}
        before = sorted(other for other in versions if other <= version)
        adapters = before[-self._adapters_kept :] if self._adapters_kept else []
        for old in sorted(versions.difference(before[-KEPT:])):
            try:
                if old in adapters and (self.folder_of(old) / FOLDER).is_dir():
                    _remove_whole_weights(self.folder_of(old))
                else:
                    remove_folder(self.folder_of(old))
            except OSError as error:  # costs disk space, not the run
                logger.warning(
                    "cannot remove the weights of version %d: %s; remove %s", old, error, self.folder_of(old)
                )

    def abort(self) -> None:
        """Remove an unfinished folder."""
        if self._folder is not None:
            self._folder = None
            writing, self._writing = self._writing, ExitStack()
            writing.__exit__(ServerError, ServerError("aborted"), None)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ServerError(
                f"weights on disk: cannot write below {self._root}: {error}; check disk space and permissions"
            ) from error


def _remove_whole_weights(folder: Path) -> None:
    """Leave the adapters alone. Nobody reads the other files of so old a version."""
    for path in folder.iterdir():
        if path.name != FOLDER:
            path.unlink()
