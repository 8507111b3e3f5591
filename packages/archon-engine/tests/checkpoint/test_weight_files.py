"""Checkpoint folders that contradict themselves: the index decides, or the folder is refused; the order of files never
matters."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from archon_core.errors import DamagedError, WeightsError
from archon_core.models.box import Box
from archon_engine.checkpoint.hf import open_checkpoint
from archon_engine.checkpoint.names_in_files import is_plain_name
from archon_engine.checkpoint.weight_files import INDEX_FILE, ReadingPlan, plan_reading, read_index

FOLDER = Path("folder")
SINGLE, FIRST, SECOND = "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
STALE = "model-00001-of-00003.safetensors"
SPLIT = {"a": FIRST, "b": SECOND}

Files = Mapping[str, set[str]]


def plan(files: Files, index: Mapping[str, str] | None) -> ReadingPlan:
    names = [*files, *([] if index is None else [INDEX_FILE])]
    return plan_reading(FOLDER, names, index, files.__getitem__)


READ: dict[str, tuple[Files, Mapping[str, str] | None, Mapping[str, str], str]] = {
    "a single file": ({SINGLE: {"a", "b"}}, None, {"a": SINGLE, "b": SINGLE}, ""),
    "shards": ({FIRST: {"a"}, SECOND: {"b"}}, SPLIT, SPLIT, ""),
    "an index of a single file": ({SINGLE: {"a"}}, {"a": SINGLE}, {"a": SINGLE}, ""),
    "a tensor in two files of the index": ({FIRST: {"a", "b"}, SECOND: {"b"}}, SPLIT, SPLIT, f"all tensors in {FIRST}"),
    "every tensor in every file": ({FIRST: {"a", "b"}, SECOND: {"a", "b"}}, SPLIT, SPLIT, "without a, b"),
    "a tensor that the index does not name": ({FIRST: {"a"}, SECOND: {"b", "c"}}, SPLIT, SPLIT, "without c"),
    "a stale shard": ({FIRST: {"a"}, SECOND: {"b"}, STALE: {"a", "b"}}, SPLIT, SPLIT, STALE),
    "an adapter": ({SINGLE: {"a"}, "adapter_model.safetensors": {"a"}}, None, {"a": SINGLE}, "adapter_model"),
    "another set of names": ({SINGLE: {"a"}, "consolidated.safetensors": {"x"}}, None, {"a": SINGLE}, "consolidated"),
    "pickled weights too": ({SINGLE: {"a"}, "pytorch_model.bin": {"a"}}, None, {"a": SINGLE}, "pytorch_model.bin"),
    "no weights beside": ({SINGLE: {"a"}, "training_args.bin": set(), "README.md": set()}, None, {"a": SINGLE}, ""),
}
"""Case -> files with their tensors, index, where each tensor is read from, and text of a decision."""

REFUSED: dict[str, tuple[Files, Mapping[str, str] | None, str]] = {
    "nothing": ({}, None, "found nothing; weights are read from"),
    "pickled weights alone": ({"pytorch_model.bin": {"a"}}, None, r"found pytorch_model\.bin; .*convert"),
    "an index beside a single file": (
        {SINGLE: {"a", "b"}, FIRST: {"a"}, SECOND: {"b"}},
        SPLIT,
        f"found {SINGLE} beside {INDEX_FILE}, .*remove the stale one",
    ),
    "a stale index beside a single file": ({SINGLE: {"a", "b"}}, SPLIT, f"found {SINGLE} beside {INDEX_FILE}"),
    "shards without an index": ({FIRST: {"a"}, SECOND: {"b"}}, None, f"without {INDEX_FILE}.*copy the checkpoint's"),
    "shards beside a single file": ({SINGLE: {"a"}, FIRST: {"a"}}, None, f"found {SINGLE} and {FIRST} without"),
    "a missing shard": ({FIRST: {"a"}}, SPLIT, f"names {SECOND}, not found in the folder"),
    "a tensor that its file lacks": (
        {FIRST: {"a", "b"}, SECOND: {"c"}},
        SPLIT,
        f"names 'b' in {SECOND}, which does",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_each_tensor_is_read_from_the_file_that_the_rules_name(case: str) -> None:
    files, index, expected, text = READ[case]
    found = plan(files, index)
    assert dict(found.file_of) == expected
    said = " ".join(f"{d.requested} {d.effective} {d.reason}" for d in found.decisions("actor.path"))
    assert bool(said) == bool(text)
    assert text in said


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_leaves_open_what_is_meant_is_refused(case: str) -> None:
    files, index, text = REFUSED[case]
    with pytest.raises(WeightsError, match=text):
        plan(files, index)


NAMES = st.sampled_from([SINGLE, FIRST, SECOND, STALE, "consolidated.safetensors", "pytorch_model.bin", "other.bin"])
TENSORS = st.sampled_from("abcd")


@given(
    st.dictionaries(NAMES, st.sets(TENSORS)),
    st.none() | st.dictionaries(TENSORS, st.sampled_from([SINGLE, FIRST, SECOND]), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_files_and_of_the_index_changes_nothing(
    files: dict[str, set[str]], index: dict[str, str] | None, shuffle: random.Random
) -> None:
    def outcome(files: Files, index: Mapping[str, str] | None) -> object:
        try:
            found = plan(files, index)
        except WeightsError as error:
            return str(error)
        return found, list(found.file_of), found.decisions("x")

    def shuffled(entries: dict) -> dict:
        pairs = list(entries.items())
        shuffle.shuffle(pairs)
        return dict(pairs)

    first = outcome(files, index)
    assert outcome(shuffled(files), None if index is None else shuffled(index)) == first
    if not isinstance(first, str) and index is not None:
        assert first[0].file_of == index, "the index decides"


def write(folder: Path, files: Mapping[str, Mapping[str, float]], index: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    for file, tensors in files.items():
        save_file({n: torch.full((2,), v) for n, v in tensors.items()}, folder / file, metadata={"format": "pt"})
    if index is not None:
        text = index if isinstance(index, str) else json.dumps({"metadata": {}, "weight_map": index})
        (folder / INDEX_FILE).write_text(text)
    return folder


@pytest.mark.parametrize("order", [1, -1])
def test_values_come_from_the_file_that_the_index_names_whichever_was_written_last(order: int, tmp_path: Path) -> None:
    files = {FIRST: {"a": 1.0, "b": -1.0}, SECOND: {"a": -2.0, "b": 2.0}, STALE: {"a": -3.0, "b": -3.0}}
    checkpoint = open_checkpoint(write(tmp_path, dict(list(files.items())[::order]), SPLIT))
    assert [checkpoint.read(name, Box.whole((2,))).tolist() for name in "ab"] == [[1.0, 1.0], [2.0, 2.0]]
    assert checkpoint.path_of("b").name == SECOND


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a.bin", ""])
def test_an_index_that_leads_out_of_its_folder_is_refused_before_anything_is_opened(place: str, tmp_path: Path) -> None:
    write(tmp_path, {"../outside.safetensors": {"a": 1.0}})
    folder = write(tmp_path / "inside", {FIRST: {"b": 1.0}}, {"b": FIRST, "a": place})
    with pytest.raises(WeightsError, match=r"names the file '.*' for 'a'; allowed are names of \.safetensors files"):
        open_checkpoint(folder)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {FIRST: {"a": 1.0}, SECOND: {"a": 2.0}})
    (tmp_path / INDEX_FILE).write_text(f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}')
    with pytest.raises(WeightsError, match=r"index\.json: found the name 'a' twice"):
        read_index(tmp_path / INDEX_FILE)


def test_a_weight_file_that_has_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(DamagedError, match=f"{SINGLE}: found no readable safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "\xff", "[" * 10**5])
def test_an_index_that_is_none_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(DamagedError, match=INDEX_FILE):
        open_checkpoint(tmp_path)


def test_transformers_reads_the_same_values_where_a_folder_is_clear(tmp_path: Path) -> None:
    """Where it is not, transformers follows the order of files, or loads a tensor that the index does not name."""
    config = Qwen3Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.num_key_value_heads, config.head_dim = 1, 8
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="1KB")
    index = read_index(tmp_path / INDEX_FILE)
    assert len(set(index.values())) > 1
    stale = {name: torch.zeros(1) for name in index}
    for name in ("model-00001-of-00009.safetensors", "consolidated.safetensors"):
        save_file(stale, tmp_path / name, metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    ours = open_checkpoint(tmp_path)
    assert set(ours.shapes) == set(index)
    for name, shape in ours.shapes.items():
        assert torch.equal(ours.read(name, Box.whole(shape)).float(), theirs[name].float()), name


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a", True), ("a.b", True), ("..a", True), ("", False), (".", False), ("..", False), ("a/b", False)]
    + [("/a", False), ("\\a", False), ("c:a", False), ("a\0", False)],
)
def test_a_plain_name_stays_in_its_folder_on_every_system(name: str, plain: bool) -> None:
    assert is_plain_name(name) == plain
