"""Loading Hugging Face checkpoints: safetensors files with an index, read in slices.

A resolved weight map says which parts of which stored tensors make up the boxes that a process owns, and those alone
are read. Which boxes are owned is a function given by the caller, so that sharded modules use the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from archon_core.errors import DamagedError, WeightsError
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_engine.checkpoint.safetensors_file import SafetensorsReader
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights
from archon_engine.models.weight_conversion import fill_ours

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LocalBoxes = Callable[[str, Tensor], Iterable[tuple[Tensor, Box]]]
"""For a weight's global name and the tensor itself: storage on this process, and the boxes of the whole that it
holds."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        initialised: our names of weights that the checkpoint lacks and may lack; their storage was not touched.
        bytes_read: size of the slices read.
    """

    initialised: tuple[str, ...]
    bytes_read: int


def whole_tensor(_name: str, weight: Tensor) -> Iterable[tuple[Tensor, Box]]:
    """``LocalBoxes`` of an unsharded module."""
    return [(weight.detach(), Box.whole(tuple(weight.shape)))]


@torch.no_grad()
def load_hf_weights(
    module: nn.Module, weights: ResolvedMap, folder: Path, *, local_boxes: LocalBoxes = whole_tensor
) -> LoadReport:
    """Fill the weights of ``module`` in place from a checkpoint folder, casting to their types.

    The keys are checked for the whole model; what is read is what ``module``, which may be one stage, holds of it.

    Args:
        weights: the map, resolved for the whole model; of its forms, the one that the checkpoint has is read.
        local_boxes: which parts of each weight to fill.

    Returns:
        The report. The caller initialises ``report.initialised``.

    Raises:
        WeightsError: no weights in the folder, damaged files, or missing, unexpected and misshapen keys, all listed.
    """
    checkpoint = open_checkpoint(folder)
    weights, report = form_of(checkpoint.shapes, weights)
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
        stored = weights.ties.get(name, name)
        if stored != name and own.get(stored) is weight:
            continue  # filled under the other name
        if any(link.hf in lacking for link in weights.links_of_ours[name]):
            initialised.append(name)
            continue
        copies = [copy for copy, ours in weights.copies.items() if ours == stored and copy in checkpoint.shapes]
        for storage, box in local_boxes(name, weight):
            if not box.numel:
                continue
            fill_ours(storage, name, box, weights, checkpoint.read)
            for copy in copies:
                _check_copy(copy, stored, box, weights, checkpoint)
    return LoadReport(tuple(initialised), checkpoint.bytes_read)


class OpenCheckpoint:
    """The weight files of a folder as one set of tensors.

    Attributes:
        shapes: name -> shape of every stored tensor.
    """

    def __init__(self, files: Iterable[SafetensorsReader]) -> None:
        self._file_of = {name: file for file in files for name in file.shapes}
        self.shapes = {name: file.shapes[name] for name, file in self._file_of.items()}

    @property
    def bytes_read(self) -> int:
        """Size of all slices read so far."""
        return sum(file.bytes_read for file in set(self._file_of.values()))

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name].path

    def dtype(self, name: str) -> torch.dtype:
        """The stored type of a tensor. Raises WeightsError when it is none that weights are computed in."""
        return self._file_of[name].dtype(name)

    def read(self, name: str, box: Box) -> Tensor:
        """A ``BoxReader`` of the stored tensors."""
        return self._file_of[name].read(name, box)


def open_checkpoint(folder: Path) -> OpenCheckpoint:
    """Open the single weight file of ``folder``, or all that its index names.

    Raises:
        WeightsError: there is neither, the index is damaged or contradicts its files, or a file is damaged.
    """
    if (folder / SINGLE_FILE).is_file():
        return OpenCheckpoint([SafetensorsReader(folder / SINGLE_FILE)])
    index = folder / INDEX_FILE
    if not index.is_file():
        found = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
        raise WeightsError(
            f"checkpoint {folder}: found {', '.join(found[:8]) or 'nothing'}; weights are read from {SINGLE_FILE} or "
            f"from the files that {INDEX_FILE} names: convert other formats to safetensors"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        file_names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{index}: found no readable index ({error!r}); copy the file anew") from error
    files = {name: SafetensorsReader(folder / name) for name in file_names}
    wrong = [name for name, file in weight_map.items() if name not in files[file].shapes]
    if wrong:
        raise WeightsError(
            f"{index}: names {len(wrong)} tensors that their files do not hold, such as {wrong[0]!r} in "
            f"{weight_map[wrong[0]]}; index and files are from different checkpoints: copy both anew"
        )
    return OpenCheckpoint(files.values())


def _check_copy(copy: str, stored: str, box: Box, weights: ResolvedMap, checkpoint: OpenCheckpoint) -> None:
    """A second copy of a tied weight must be equal, or the checkpoint is not one of a tied model."""
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
