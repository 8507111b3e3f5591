"""The receiving end of the transport ``disk``: reads one weight file per bucket from the shared folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from archon_core.contracts.weight_transport import WeightStore
from archon_core.errors import ServerError, WeightsError
from archon_core.models.box import Box
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.serving.update import BucketNotice, UpdatePlan
from archon_engine.checkpoint.safetensors_file import SafetensorsReader


class DiskReceiver:
    """Implements ``contracts.weight_transport.WeightReceiver``."""

    def __init__(self, *, timeout: float) -> None:
        self._folder: Path | None = None

    def begin(self, plan: UpdatePlan) -> None:
        """Check that the trainer's folder is visible here."""
        folder = Path(str(plan.setup.get("folder")))
        if not folder.is_dir():
            raise ServerError(
                f"weights of version {plan.version}: found no folder {folder} on this host; the transport disk needs "
                "cluster.fileroot on a file system that trainer and servers share"
            )
        self._folder = folder

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Read the tensors of one file."""
        name = str(notice.place.get("file"))
        if self._folder is None or Path(name).name != name:
            raise ServerError(f"bucket {notice.index}: found file {name!r}; allowed is a file of the announced folder")
        checksums = {}
        try:
            reader = SafetensorsReader(self._folder / name) if notice.sent else None
            for entry, _ in notice.sent:
                if reader is None or reader.shapes.get(entry.name) != entry.shape:
                    raise ServerError(
                        f"{self._folder / name}: found no {entry.name!r} of shape {entry.shape}; the file is not of "
                        f"version {notice.version}"
                    )
                values = reader.read(entry.name, Box.whole(entry.shape))
                checksums[entry.name] = checksum_of(bytes_of(values))
                store.put(entry.name, values)
        except (OSError, WeightsError) as error:
            raise ServerError(f"{self._folder / name}: cannot read it: {error}") from error
        return checksums

    def end(self) -> None:
        """Forget the folder."""
        self._folder = None
