"""The last published version in a folder, from which a newcomer can get it at any time, without the trainer's ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.weight_transport import TransportContext, WeightBucket, WeightTransport
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, notice_of
from archon_rollout.transports.disk import DiskTransport, file_place
from archon_rollout.transports.version_folders import VersionFolders

logger = logging.getLogger(__name__)

Answers = Mapping[tuple[int, ...], tuple[float, ...]]
"""Completions of the canary -> the trainer's log-probabilities of their tokens."""


@dataclass(frozen=True)
class StoredVersion:
    """A version that is in use.

    Attributes:
        manifest: with checksums; every tensor is in the folder.
        folder: a Hugging Face folder.
        notices: one per weight file, in order.
        answers: what servers answered to the canary, as the trainer computes it; ``None`` without a canary.
        tolerance: largest difference of a log-probability.
    """

    manifest: WeightManifest
    folder: Path
    notices: tuple[BucketNotice, ...]
    answers: Answers | None = None
    tolerance: float = 0.0


class StoredVersions:
    """Keeps the last version that was published; used by rank 0 during publications.

    Args:
        folders: of the versions.
        writes: write the folders, because the transport does not.
    """

    def __init__(self, folders: VersionFolders, *, writes: bool) -> None:
        self._folders, self._writes = folders, writes
        self._is_whole = False
        self._notices: list[BucketNotice] = []
        self.current: StoredVersion | None = None
        """The version in use; ``None`` before the first, and if it could not be written."""

    def begin(self, manifest: WeightManifest) -> None:
        """A publication begins."""
        self._is_whole, self._notices = True, []
        if self._writes:
            self._try(lambda: self._folders.begin(manifest))

    def add(self, bucket: WeightBucket, notice: BucketNotice) -> None:
        """A bucket is on its way; its memory is not written before this returns."""
        entries = tuple(replace(entry, encoding="full") for entry in notice.tensors)
        place = file_place(self._folders.file_of(notice.index))
        self._notices.append(replace(notice_of(notice.version, notice.index, entries), place=place))
        if self._writes and self._is_whole:
            self._try(lambda: self._folders.add(notice.index, entries, bucket.tensors))

    def commit(self, manifest: WeightManifest, answers: Answers | None, tolerance: float) -> None:
        """The version is in use.

        Args:
            manifest: with all checksums.
            answers: see ``StoredVersion``.
            tolerance: largest difference of a log-probability.
        """
        if self._writes and self._is_whole:
            self._try(lambda: self._folders.finish(manifest))
            self._folders.prune(manifest.version)
        folder = self._folders.folder_of(manifest.version)
        self.current = None
        if self._is_whole and folder.is_dir():  # the transport completes it only if a server received everything
            full = tuple(replace(entry, encoding="full") for entry in manifest.tensors)
            whole = replace(manifest, tensors=full, base_version=None)
            self.current = StoredVersion(whole, folder, tuple(self._notices), answers, tolerance)

    def _try(self, write: Callable[[], object]) -> None:
        """Write something. A failure costs newcomers time, not the publication."""
        try:
            write()
        except ServerError as error:
            self._is_whole = False
            self._folders.abort()
            logger.warning("newcomers wait for the next publication: %s", error)


def stored_versions(
    config: RolloutConfig, context: TransportContext, transport: WeightTransport
) -> StoredVersions | None:
    """Where newcomers find the version in use; ``None`` if they join with publications.

    Args:
        config: the section ``rollout``, with its transport chosen.
        context: of the transport.
        transport: of the publications.

    Raises:
        ConfigError: ``rollout.newcomer_weights`` asks for a folder that servers cannot read, or that has no place.
    """
    if isinstance(transport, DiskTransport):
        if config.newcomer_weights == "publication":
            return None
        return StoredVersions(transport.folders, writes=False)
    if config.newcomer_weights != "disk":
        return None
    allowed = context.driver.capabilities.transports
    if "disk" not in allowed or context.folder is None:
        why = f"servers that receive by {', '.join(allowed)} only" if context.folder else "no folder for the run"
        raise ConfigError(
            f"rollout.newcomer_weights: found disk, and {why}; allowed is publication; leave it out, or set "
            "rollout.weight_transport=disk"
        )
    root = context.folder / "weights"
    folders = VersionFolders(root, bucket_bytes=context.bucket_bytes, companions=context.companions)
    return StoredVersions(folders, writes=True)
