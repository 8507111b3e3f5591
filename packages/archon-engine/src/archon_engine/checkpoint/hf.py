"""Loading Hugging Face checkpoints: safetensors files with an index, read in slices.

A resolved weight map tells which parts of stored tensors make up the boxes of a process, and only those are read. The
caller provides the function that returns these boxes, so the same code serves sharded modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from archon_core.errors import WeightsError
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_engine.checkpoint.safetensors_file import SafetensorsReader
from archon_engine.checkpoint.weight_files import INDEX_FILE, ReadingPlan, plan_reading, read_index
from archon_engine.models.key_report import KeyReport, form_of
from archon_engine.models.parameter_names import named_weights
from archon_engine.models.weight_conversion import BoxReader, fill_ours

LocalBoxes = Callable[[str, Tensor], Iterable[tuple[Tensor, Box]]]
"""Maps a weight's global name and the weight to its storage on this process, with the boxes of the whole tensor that it
holds."""


@dataclass(frozen=True)
class LoadReport:
    """The result of a load.

    Attributes:
        initialised: our names of weights that the checkpoint lacks, as it may; their storage is unchanged.
        bytes_read: size of the slices read.
        plan: which file each tensor was read from.
        dropped: why tensors of the checkpoint were not read -> their Hugging Face names, where a rule gives a reason.
    """

    initialised: tuple[str, ...]
    bytes_read: int
    plan: ReadingPlan
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def whole_tensor(_name: str, weight: Tensor) -> Iterable[tuple[Tensor, Box]]:
    """``LocalBoxes`` of an unsharded module."""
    return [(weight.detach(), Box.whole(tuple(weight.shape)))]


@torch.no_grad()
def load_hf_weights(
    module: nn.Module, weights: ResolvedMap, folder: Path, *, local_boxes: LocalBoxes = whole_tensor
) -> LoadReport:
    """Fill the weights of ``module`` in place from a checkpoint folder, casting to their dtypes.

    ``module`` may be one stage. Keys are checked for the whole model, but only weights of ``module`` are read.

    Args:
        weights: the map, resolved for the whole model. The checkpoint may have any of its forms.
        local_boxes: which parts of each weight to fill.

    Returns:
        The report. The caller initialises ``report.initialised``.

    Raises:
        WeightsError: the folder has no weights, a file is damaged, or keys are missing, unexpected or misshapen; all of
            them are listed.
    """
    checkpoint = open_checkpoint(folder)
    weights, report = checkpoint.form_of(weights)
    if not report.fits:
        raise WeightsError(
            f"checkpoint {folder} does not fit the model:\n  "
            + "\n  ".join(report.lines())
            + "\ngive a checkpoint of this architecture and size, or the configuration that it was saved with"
        )
    own = named_weights(module)
    lacking = set(report.initialised)
    initialised: list[str] = []
    for name, weight in own.items():
        if name not in weights.links_of_ours:
            continue  # a parameter of an adapter: every weight of the model has a rule
        stored = weights.ties.get(name, name)
        if stored != name and own.get(stored) is weight:
            continue  # filled under the other name
        if any(link.hf in lacking for link in weights.links_of_ours[name]):
            initialised.append(name)
            continue
        for storage, box in local_boxes(name, weight):
            if box.numel:
                fill_from(checkpoint, storage, name, box, weights)
    return LoadReport(
        tuple(initialised), checkpoint.bytes_read, checkpoint.plan, weights.dropped_with_reason(checkpoint.shapes)
    )


class OpenCheckpoint:
    """The weight files of a folder, as one set of tensors.

    Attributes:
        shapes: name -> shape of every tensor that is read.
        plan: which file each is read from.
    """

    def __init__(self, plan: ReadingPlan, files: Mapping[str, SafetensorsReader]) -> None:
        self.plan = plan
        self._file_of = {name: files[file] for name, file in plan.file_of.items()}
        self.shapes = {name: file.shapes[name] for name, file in self._file_of.items()}

    @property
    def bytes_read(self) -> int:
        """Size of all slices read so far."""
        return sum(file.bytes_read for file in set(self._file_of.values()))

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name].path

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor. Raises WeightsError for a type that Archon does not compute in."""
        return self._file_of[name].dtype(name)

    def read(self, name: str, box: Box) -> Tensor:
        """A ``BoxReader`` of the stored tensors."""
        return self._file_of[name].read(name, box)

    def reader(self, weights: ResolvedMap) -> BoxReader:
        """A ``BoxReader`` of the tensors of ``weights``; it decodes encoded tensors."""

        def read(name: str, box: Box) -> Tensor:
            encoded = weights.encoded.get(name)
            return self.read(name, box) if encoded is None else encoded.read(box, self._read_stored)

        return read

    def _read_stored(self, name: str, box: Box) -> Tensor:
        return self._file_of[name].read_stored(name, box)

    def form_of(self, weights: ResolvedMap) -> tuple[ResolvedMap, KeyReport]:
        """``key_report.form_of`` for this checkpoint.

        Raises:
            WeightsError: a file of the index holds a weight of the model, but the index does not name it.
        """
        form, report = form_of(self.shapes, weights)
        lost = [name for name in (*report.missing, *report.initialised) if name in self.plan.unnamed]
        if lost:
            raise WeightsError(
                f"{self.plan.folder / self.plan.decided_by}: does not name {lost[0]!r}, which the model has and "
                f"{self.plan.unnamed[lost[0]][0]} holds; index and files do not belong together; copy both again"
            )
        return form, report


def open_checkpoint(folder: Path) -> OpenCheckpoint:
    """Open the weight files of ``folder``; see ``weight_files.plan_reading`` for the rules.

    Raises:
        WeightsError: the folder has no weights or contradicts itself, or a file is damaged.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    index = read_index(folder / INDEX_FILE) if INDEX_FILE in names else None
    files: dict[str, SafetensorsReader] = {}

    def tensors_in(name: str) -> Collection[str]:
        files[name] = SafetensorsReader(folder / name)
        return files[name].shapes

    return OpenCheckpoint(plan_reading(folder, names, index, tensors_in), files)


def fill_from(checkpoint: OpenCheckpoint, destination: Tensor, name: str, box: Box, weights: ResolvedMap) -> None:
    """Read ``box`` of our tensor ``name`` into ``destination``, and compare it with the second copy of a tied weight.

    Raises:
        WeightsError: the second copy differs.
    """
    fill_ours(destination, name, box, weights, checkpoint.reader(weights))
    stored = weights.ties.get(name, name)
    for copy, ours in weights.copies.items():
        if ours == stored and copy in checkpoint.shapes:
            _check_copy(copy, stored, box, weights, checkpoint)


def _check_copy(copy: str, stored: str, box: Box, weights: ResolvedMap, checkpoint: OpenCheckpoint) -> None:
    """Check that the second copy of a tied weight is equal; otherwise the checkpoint is not of a tied model."""
    for block in _row_blocks(box):
        for link in weights.links_in(stored, block):
            part = checkpoint.read(link.hf, link.hf_box)
            if not torch.equal(part, checkpoint.read(copy, link.our_box).reshape(part.shape)):
                raise WeightsError(
                    f"{checkpoint.path_of(copy)}: {copy!r} differs from {link.hf!r}, but the configuration ties the "
                    "two; set tie_word_embeddings to false in its config.json"
                )


def _row_blocks(box: Box, rows: int = 4096) -> Iterable[Box]:
    for start in range(box.start[0], box.stop[0], rows):
        stop = min(start + rows, box.stop[0])
        yield Box((start, *box.start[1:]), (stop - start, *box.shape[1:]))
