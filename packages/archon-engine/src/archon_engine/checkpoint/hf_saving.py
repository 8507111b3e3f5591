"""Saving Hugging Face checkpoints: safetensors files with index, configuration, tokenizer and checksums.

Stored tensors are assembled one at a time from boxes of ours; the caller provides the function that gathers these.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Shape
from archon_core.models.weight_map import ResolvedMap
from archon_engine.checkpoint.safetensors_file import SafetensorsWriter
from archon_engine.checkpoint.seal import SealedFile, seal_whole, write_seal
from archon_engine.checkpoint.weight_files import INDEX_FILE
from archon_engine.models.hf_config import config_file
from archon_engine.models.tokenizer import save_tokenizer
from archon_engine.models.weight_conversion import (
    BoxCopier,
    assemble_hf,
    copy_from,
    send_shards,
    stored_dtype,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
"""Files without weights that make a checkpoint usable."""


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
        tensors: our whole tensors by name, or a function that copies a box of one. The function may gather from other
            ranks; it is called for the same boxes in the same order on every rank.
        weights: the map, resolved for the whole model.
        folder: where to write; created. It must not hold weights, or old shards could remain beside new ones.
        config: the model's ``transformers`` configuration.
        dtype: dtype to store, but for tensors that the map keeps in fp32.
        critic: whether the head is a value head.
        max_shard_bytes: maximum tensor bytes per file; a larger tensor gets a separate file.
        tokenizer: a ``transformers`` tokenizer to save beside the weights.
        companions_from: a checkpoint folder whose tokenizer and generation files are copied.
        write: false on ranks that only send their shards.

    Raises:
        WeightsError: the folder holds weights or cannot be written, or ``dtype`` cannot be stored. It is raised after
            all shards were received, so no other rank is left waiting.
    """
    copy_ours = tensors if callable(tensors) else copy_from(tensors)
    dtypes = {name: stored_dtype(name, weights, dtype) for name in weights.hf_shapes}
    files = plan_shards(weights.hf_shapes, dtypes, max_shard_bytes)
    if not write:
        for name in itertools.chain.from_iterable(files.values()):
            send_shards(name, weights, copy_ours)
        return
    lend = (lambda name: None) if callable(tensors) else partial(_lend, tensors=tensors, weights=weights, dtypes=dtypes)
    assembled = _assembled(itertools.chain.from_iterable(files.values()), weights, copy_ours, lend, dtypes)
    try:
        prepare_folder(folder)
        sealed = {
            file: _write_file(
                folder / file, {name: (dtypes[name], weights.hf_shapes[name]) for name in names}, assembled
            )
            for file, names in files.items()
        }
        if len(files) > 1:
            _write_index(folder, files, weights.hf_shapes, dtypes)
            sealed[INDEX_FILE] = seal_whole(folder / INDEX_FILE)
        write_seal(folder, sealed)
        _write_companions(folder, config, dtype=dtype, critic=critic, source=companions_from)
    except Exception as error:
        for _ in assembled:  # receive what other ranks still send
            pass
        if isinstance(error, OSError):
            raise WeightsError(
                f"checkpoint {folder}: cannot write it ({error}); check disk space and permissions"
            ) from error
        raise
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def _assembled(
    names: Iterable[str],
    weights: ResolvedMap,
    copy_ours: BoxCopier,
    lend: Callable[[str], Tensor | None],
    dtypes: Mapping[str, torch.dtype],
) -> Iterator[Tensor]:
    """Yield the tensors to store, each valid until the next. A tensor that cannot be lent is assembled in
    ``scratch``, one for each dtype."""
    scratch: dict[torch.dtype, Tensor] = {}
    for name in names:
        lent, dtype = lend(name), dtypes[name]
        if lent is None and dtype not in scratch:
            sizes = (math.prod(shape) for hf, shape in weights.hf_shapes.items() if dtypes[hf] == dtype)
            scratch[dtype] = torch.empty(max(sizes), dtype=dtype)
        yield assemble_hf(name, weights, copy_ours, dtype, scratch[dtype]) if lent is None else lent


def _lend(
    name: str, *, tensors: Mapping[str, Tensor], weights: ResolvedMap, dtypes: Mapping[str, torch.dtype]
) -> Tensor | None:
    """Our tensor itself, if its bytes equal those to store; otherwise ``None``."""
    shape, links = weights.hf_shapes[name], weights.links_of_hf[name]
    if len(links) != 1 or links[0].hf_box != Box.whole(shape) or links[0].order:
        return None
    ours = tensors[links[0].ours].detach()
    is_whole = links[0].our_box == Box.whole(tuple(ours.shape))
    return ours.view(shape) if is_whole and ours.dtype == dtypes[name] and ours.is_contiguous() else None


def _write_file(path: Path, entries: Mapping[str, tuple[torch.dtype, Shape]], tensors: Iterator[Tensor]) -> SealedFile:
    with SafetensorsWriter(path, entries) as writer:
        for name in entries:
            writer.write(name, next(tensors))
    return writer.sealed()


def _write_companions(
    folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype, critic: bool, source: Path | None
) -> None:
    text = config_file(config, critic=critic, dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(text, encoding="utf-8")
    for name in COMPANIONS if source is not None else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def prepare_folder(folder: Path) -> None:
    """Create ``folder`` if it does not exist. Raises WeightsError if it holds weights."""
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in folder.glob("*.safetensors*"))
    if present:
        raise WeightsError(f"{folder}: found weights already ({', '.join(present[:3])}); save to a new or empty folder")


def plan_shards(
    shapes: Mapping[str, Shape], dtypes: Mapping[str, torch.dtype], max_shard_bytes: int
) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order. The split is the one that ``transformers`` makes for the same
    limit."""
    from huggingface_hub import split_state_dict_into_shards_factory

    sizes = {name: Box.whole(shape).numel * dtypes[name].itemsize for name, shape in shapes.items()}
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    return split.filename_to_tensors


def _write_index(
    folder: Path, files: Mapping[str, list[str]], shapes: Mapping[str, Shape], dtypes: Mapping[str, torch.dtype]
) -> None:
    elements = {name: Box.whole(shape).numel for name, shape in shapes.items()}
    n_bytes = sum(number * dtypes[name].itemsize for name, number in elements.items())
    index = {
        "metadata": {"total_parameters": sum(elements.values()), "total_size": n_bytes},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
