"""Hugging Face checkpoints: safetensors files with index, configuration and tokenizer, read and written in slices.

Loading asks a resolved weight map which parts of which stored tensors make up the boxes that a process owns, and
reads those alone. Saving assembles one stored tensor at a time. Which boxes are owned, and how boxes of ours are
gathered, are functions given by the caller, so that sharded modules use the same code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archon_core.checkpoint.safetensors_file import SafetensorsReader, SafetensorsWriter
from archon_core.errors import WeightsError
from archon_core.models.box import Box, Shape
from archon_core.models.hf_config import config_to_save
from archon_core.models.key_report import compare_keys
from archon_core.models.parameter_names import named_weights
from archon_core.models.weight_conversion import BoxCopier, assemble_hf, copy_from, fill_ours, give_hf
from archon_core.models.weight_map import ResolvedMap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that make a checkpoint usable and hold no weights."""

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
        weights: the map, resolved for the whole model.
        local_boxes: which parts of each weight to fill.

    Returns:
        The report. The caller initialises ``report.initialised``.

    Raises:
        WeightsError: no weights in the folder, damaged files, or missing, unexpected and misshapen keys, all listed.
    """
    checkpoint = open_checkpoint(folder)
    report = compare_keys(weights, checkpoint.shapes)
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


def save_hf_weights(
    tensors: Mapping[str, Tensor] | BoxCopier,
    weights: ResolvedMap,
    folder: Path,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    critic: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    tokenizer: Any = None,
    companions_from: Path | None = None,
    write: bool = True,
) -> None:
    """Write a checkpoint folder that ``transformers``, vLLM and SGLang load.

    Args:
        tensors: our whole tensors by name, or a function that copies a box of one: it may gather from other ranks, and
            is called for the same boxes in the same order on every rank.
        weights: the map, resolved for the whole model.
        folder: where to write; created. It must not hold weights already, lest old shards stay beside new ones.
        config: the model's ``transformers`` configuration.
        dtype: the type to store.
        critic: the head is a value head.
        max_shard_bytes: tensor bytes per file at most; one larger tensor gets a file of its own.
        tokenizer: something with ``save_pretrained``; written beside the weights.
        companions_from: a checkpoint folder whose tokenizer and generation files are copied.
        write: false on ranks that only take part in gathering.

    Raises:
        WeightsError: the folder holds weights, or ``dtype`` is none that weights are stored in.
    """
    copy_ours = tensors if callable(tensors) else copy_from(tensors)
    files = plan_shards(weights.hf_shapes, dtype, max_shard_bytes)
    if write:
        prepare_folder(folder)
    for file, names in files.items():
        entries = {name: (dtype, weights.hf_shapes[name]) for name in names}
        with ExitStack() as stack:
            writer = stack.enter_context(SafetensorsWriter(folder / file, entries)) if write else None
            for name in names:
                if writer is not None:
                    writer.write(name, assemble_hf(name, weights, copy_ours, dtype))
                else:
                    give_hf(name, weights, copy_ours)
    if not write:
        return
    if len(files) > 1:
        _write_index(folder, files, weights.hf_shapes, dtype)
    config_to_save(config, critic=critic, dtype=str(dtype).removeprefix("torch.")).save_pretrained(folder)
    if companions_from is not None:
        for name in COMPANIONS:
            if (companions_from / name).is_file():
                shutil.copyfile(companions_from / name, folder / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def prepare_folder(folder: Path) -> None:
    """Create ``folder`` unless it is there. Raises WeightsError when it holds weights."""
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in folder.glob("*.safetensors*"))
    if present:
        raise WeightsError(
            f"{folder}: found weights there already ({', '.join(present[:3])}); save to a new or an empty folder"
        )


def plan_shards(shapes: Mapping[str, Shape], dtype: torch.dtype, max_shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order: the split that ``transformers`` makes for the same limit."""
    from huggingface_hub import split_state_dict_into_shards_factory

    sizes = {name: Box.whole(shape).numel * dtype.itemsize for name, shape in shapes.items()}
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    return split.filename_to_tensors


def _write_index(folder: Path, files: Mapping[str, list[str]], shapes: Mapping[str, Shape], dtype: torch.dtype) -> None:
    elements = sum(Box.whole(shape).numel for shape in shapes.values())
    index = {
        "metadata": {"total_parameters": elements, "total_size": elements * dtype.itemsize},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
        raise WeightsError(f"{index}: found no readable index ({error!r}); copy the file anew") from error
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
