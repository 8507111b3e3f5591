from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from archon_core.errors import WeightsError
from archon_core.models.box import Box
from archon_engine.checkpoint.safetensors_file import DTYPES, SafetensorsReader, SafetensorsWriter

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
contents = st.dictionaries(
    st.text('abä."\\/ 0', min_size=1, max_size=6), st.tuples(st.sampled_from(sorted(DTYPES)), shapes), min_size=1
)


@given(contents=contents, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_streamed_file_is_the_one_that_the_reference_writes(
    contents: dict, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(DTYPES[dtype])
        for i, (name, (dtype, shape)) in enumerate(contents.items())
    }
    save_file(tensors, folder / "reference", metadata={"format": "pt"})
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder / "streamed", entries) as writer:
        for name in data.draw(st.permutations(sorted(tensors))):
            writer.write(name, tensors[name])
    assert (folder / "streamed").read_bytes() == (folder / "reference").read_bytes()


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    with SafetensorsWriter(tmp_path / "f", {"w": (torch.float32, (4, 2))}) as writer:
        writer.write("w", tensor.T[:, ::2])
    assert torch.equal(load_file(tmp_path / "f")["w"], tensor.T[:, ::2])


def test_a_tensor_left_out_is_our_own_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="never written"),
        SafetensorsWriter(tmp_path / "f", {"w": (torch.float32, (4,))}),
    ):
        pass


def test_a_type_that_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"torch\.int32"):
        SafetensorsWriter(tmp_path / "f", {"w": (torch.int32, (4,))})


@given(shape=shapes, data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_slice_holds_the_box_and_only_its_bytes_are_counted(
    shape: tuple[int, ...], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = torch.arange(float(torch.Size(shape).numel()), dtype=torch.bfloat16).reshape(shape)
    path = tmp_path_factory.mktemp("files") / "f"
    save_file({"w": tensor}, path)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(data.draw(st.integers(1, n - a)) for a, n in zip(start, shape, strict=True)))
    reader = SafetensorsReader(path)
    assert reader.shapes == {"w": shape}
    assert torch.equal(reader.read("w", box), tensor[box.slices])
    assert reader.bytes_read == box.numel * 2


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "absent"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(64)}, path)
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        broken = {"truncated": content[:-8], "header": content[:8] + b"x" + content[9:], "empty": b""}[damage]
        path.write_bytes(broken)
    with pytest.raises(WeightsError, match=r"model\.safetensors: found no readable"):
        SafetensorsReader(path)


def test_a_quantised_tensor_is_refused_when_it_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.int8), "b": torch.zeros(4)}, tmp_path / "f")
    reader = SafetensorsReader(tmp_path / "f")
    reader.read("b", Box.whole((4,)))
    with pytest.raises(WeightsError, match="'w' has type I8"):
        reader.read("w", Box.whole((4,)))
