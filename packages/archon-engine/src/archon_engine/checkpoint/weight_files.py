"""Decides which file of a checkpoint folder each tensor is read from, by names only, never by the order of files.

If there is an index, each tensor is read from the file that the index names for it. Without an index, only
``model.safetensors`` is read. A folder with two sets of files of which either could be meant is an error. Files and
tensors that are not read are reported as decisions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from archon_core.contracts.decisions import Decision
from archon_core.errors import DamagedError, WeightsError
from archon_core.unique_names import NameTwiceError, unique_names
from archon_engine.checkpoint.names_in_files import is_plain_name
from archon_engine.options.combinations import shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_WEIGHTS = re.compile(
    r".+\.(safetensors|gguf|h5|msgpack|ckpt|onnx)|(pytorch_model|consolidated|model|adapter_model).*\.(bin|pt|pth)"
)
"""Files with weights in any format. Other files, such as training arguments, also end in ``.bin`` and ``.pt``."""


@dataclass(frozen=True)
class ReadingPlan:
    """The file from which each tensor of a folder is read.

    Attributes:
        folder: the folder, for messages.
        decided_by: the index, or the single weight file.
        file_of: tensor -> file, sorted by tensor.
        ignored_files: files with weights that are not read.
        elsewhere: tensor -> other files that hold a tensor of this name, which is not read.
        unnamed: tensor that the index does not name -> files that hold it.
    """

    folder: Path
    decided_by: str
    file_of: Mapping[str, str]
    ignored_files: tuple[str, ...] = ()
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unnamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def decisions(self, option: str) -> list[Decision]:
        """The files and tensors that are not read, as decisions about ``option``, which names the folder.

        Ignored files do not change the configuration, so ``strict`` accepts them. Ignored tensors in files of the index
        do.
        """
        found = []
        if self.ignored_files:
            reason = f"only files of {self.decided_by} are read; ignored: {_some(self.ignored_files)}"
            found.append(Decision(option, shown(None), f"the weights by {self.decided_by} of {self.folder}", reason))
        for tensors, what in ((self.elsewhere, "names another file for them"), (self.unnamed, "does not name them")):
            if tensors:
                files = sorted({file for files in tensors.values() for file in files})
                found.append(
                    Decision(
                        option,
                        f"all tensors in {_some(files)} of {self.folder}",
                        f"without {_some(list(tensors))}",
                        f"{self.decided_by} {what}",
                    )
                )
        return found


def plan_reading(
    folder: Path,
    names: Collection[str],
    index: Mapping[str, str] | None,
    tensors_in: Callable[[str], Collection[str]],
) -> ReadingPlan:
    """Plan which file each tensor is read from. The order of ``names`` and of the index does not matter.

    Args:
        folder: the folder, for messages.
        names: names of its files.
        index: tensor -> file, from ``read_index``; ``None`` without an index.
        tensors_in: returns the names of the tensors in a file; called for files that are read.

    Raises:
        WeightsError: the folder has no readable weights, or two sets of files of which either could be meant.
    """
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if index is None:
        return _without_index(folder, names, shards, tensors_in)
    files = sorted(set(index.values()))
    if SINGLE_FILE in names and SINGLE_FILE not in files:
        raise WeightsError(
            f"checkpoint {folder}: found {SINGLE_FILE} beside {INDEX_FILE}, which names {_some(files)}; readers of "
            "checkpoints disagree which of the two to load; remove the stale one"
        )
    missing = [file for file in files if file not in names]
    if missing:
        raise WeightsError(
            f"{folder / INDEX_FILE}: names {_some(missing)}, not found in the folder; copy the missing files, or the "
            "whole checkpoint again"
        )
    held = {file: frozenset(tensors_in(file)) for file in files}
    wrong = sorted(name for name, file in index.items() if name not in held[file])
    if wrong:
        more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise WeightsError(
            f"{folder / INDEX_FILE}: names {wrong[0]!r} in {index[wrong[0]]}, which does not hold it{more}; "
            "index and files are from different checkpoints; copy both again"
        )
    others = {
        name: tuple(file for file in files if name in held[file] and index.get(name) != file)
        for name in sorted(set().union(*held.values()))
    }
    return ReadingPlan(
        folder,
        INDEX_FILE,
        dict(sorted(index.items())),
        _weights_beside(names, files),
        {name: where for name, where in others.items() if where and name in index},
        {name: where for name, where in others.items() if where and name not in index},
    )


def _without_index(
    folder: Path, names: Collection[str], shards: list[str], tensors_in: Callable[[str], Collection[str]]
) -> ReadingPlan:
    if shards:
        beside = f"{SINGLE_FILE} and " if SINGLE_FILE in names else ""
        raise WeightsError(
            f"checkpoint {folder}: found {beside}{_some(shards)} without {INDEX_FILE}, which assigns tensors to "
            "shards; "
            + (f"remove {SINGLE_FILE} or the shards, whichever is stale" if beside else "copy the checkpoint's index")
        )
    if SINGLE_FILE not in names:
        found = ", ".join(sorted(names)[:8]) or "nothing"
        raise WeightsError(
            f"checkpoint {folder}: found {found}; weights are read from {SINGLE_FILE} or from the files that "
            f"{INDEX_FILE} names; convert other formats to safetensors"
        )
    tensors = dict.fromkeys(sorted(tensors_in(SINGLE_FILE)), SINGLE_FILE)
    return ReadingPlan(folder, SINGLE_FILE, tensors, _weights_beside(names, [SINGLE_FILE]))


def read_index(file: Path) -> dict[str, str]:
    """Read ``model.safetensors.index.json``: tensor -> file.

    ``metadata.total_size`` is not compared with the files: tools count it differently, and reading does not use it.

    Raises:
        DamagedError: the file is not an index.
        WeightsError: it names a tensor twice, or a file that is not a safetensors file beside it.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique_names)
        weight_map = entries.get("weight_map") if isinstance(entries, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(place, str) for place in weight_map.values()):
            raise ValueError("allowed is an object with weight_map, which maps names of tensors to names of files")
    except NameTwiceError as error:
        raise WeightsError(f"{file}: found the name {error} twice; copy the file again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: found no readable index ({error}); copy the file again") from error
    if not weight_map:
        raise DamagedError(f"{file}: found no tensor in weight_map; copy the file again")
    for name, place in weight_map.items():
        if not is_plain_name(place) or not place.endswith(".safetensors"):
            raise WeightsError(
                f"{file}: names the file {place!r} for {name!r}; allowed are names of .safetensors files in the same "
                "folder, without a path; copy the file again"
            )
    return weight_map


def _weights_beside(names: Collection[str], read: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if _WEIGHTS.fullmatch(name) and name not in read))


def _some(names: Collection[str], limit: int = 3) -> str:
    shown_names = list(names)[:limit]
    more = len(names) - len(shown_names)
    return ", ".join(shown_names) + (f" and {more} more" if more > 0 else "")
