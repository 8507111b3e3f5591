"""``.metadata`` of a training state: read as torch reads it, except that nothing which it names is run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import pickle
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from archon_core.errors import ArchonError, DamagedError, WeightsError
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.conversion import convert_to_hf
from archon_engine.checkpoint.dcp import SavedState, TrainingState, load_training_state
from archon_engine.checkpoint.dcp_metadata import read_metadata
from archon_engine.checkpoint.seal import (
    SEAL,
    read_seal,
    seal_whole,
    write_seal,
)

TENSORS = {
    "matrix": torch.arange(12.0).view(3, 4),
    "half": torch.arange(5).bfloat16(),
    "number": torch.tensor(3.0, dtype=torch.float64),
}
STATE = {"matrix": {"exp_avg": torch.ones(3, 4), "step": torch.tensor(7.0)}}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "dcp"
    TrainingState.of(TENSORS, STATE, {"version": 3}, {}).write(folder, Ranks())
    return folder


@pytest.fixture
def state(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "dcp")


def planted(folder: Path, content: bytes, name: str = ".metadata", *, sealed: bool = True) -> Path:
    """Put ``content`` into a file, with a seal that speaks for it, as whoever makes a folder can."""
    (folder / name).write_bytes(content)
    seal = read_seal(folder)
    assert seal is not None
    (folder / SEAL).unlink()
    if sealed:
        write_seal(folder, {**seal, name: seal_whole(folder / name)})
    return folder


class Call:
    """An object whose unpickling calls ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_the_description_is_the_one_that_torch_reads(written: Path) -> None:
    ours, theirs = read_metadata(written / ".metadata"), dcp.FileSystemReader(written).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    assert ours.version == theirs.version


def test_a_state_that_torch_wrote_from_many_shards_and_types_is_read(tmp_path: Path) -> None:
    types = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn)
    dcp.save({f"weights.{d}": torch.zeros(2, 3, dtype=d) for d in types}, checkpoint_id=tmp_path, no_dist=True)
    ours, theirs = read_metadata(tmp_path / ".metadata"), dcp.FileSystemReader(tmp_path).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def test_members_of_enums_are_read_as_older_pythons_pickle_them(written: Path, tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.4 pickle them as ``getattr(class, name)``."""
    module = importlib.import_module("torch.distributed.checkpoint.metadata")
    theirs = dcp.FileSystemReader(written).read_metadata()

    class Older(pickle.Pickler):
        def reducer_override(self, thing: Any) -> Any:
            is_member = isinstance(thing, module._MEM_FORMAT_ENCODING)
            return (getattr, (type(thing), thing.name)) if is_member else NotImplemented

    content = io.BytesIO()
    Older(content, 4).dump(theirs)
    assert b"getattr" in content.getvalue()
    (tmp_path / ".metadata").write_bytes(content.getvalue())
    assert read_metadata(tmp_path / ".metadata").state_dict_metadata == theirs.state_dict_metadata


def attacks(mark: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose unpickling would make ``mark``, and the name that the refusal gives."""
    command = f"touch {mark}"
    nested = Metadata({"weights.matrix": Call(os.system, command)}, {}, {}, None)
    return {
        "a command": (Call(os.system, command), f"{os.system.__module__}.system"),
        "inside of torch's class": (nested, f"{os.system.__module__}.system"),
        "code": (Call(exec, f"open({str(mark)!r}, 'w')"), "builtins.exec"),
        "a file": (Call(open, str(mark), "w"), f"{open.__module__}.open"),
        "one of torch's functions": (Call(torch.save, {}, str(mark)), "torch.serialization.save"),
        "as planner data": (Metadata({}, Call(os.mkdir, str(mark)), {}, None), "mkdir"),
    }


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "attack", ["a command", "inside of torch's class", "code", "a file", "one of torch's functions", "as planner data"]
)
def test_a_planted_pickle_runs_nothing_and_is_refused_by_file_and_name(
    attack: str, sealed: bool, state: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    thing, name = attacks(mark)[attack]
    content = pickle.dumps(thing)
    planted(state, content, sealed=sealed)
    (state / "__0.metadata").write_bytes(content)  # torch's reader falls back to it
    readers = {
        "open": lambda: SavedState.open(state),
        "load": lambda: load_training_state(state, TENSORS),
        "convert": lambda: convert_to_hf(state, tmp_path / "hf"),
    }
    for reader, read in readers.items():
        with pytest.raises(WeightsError, match=rf"\.metadata: found \S*{name}, .*nothing was run") as refused:
            read()
        assert refused.value.__cause__ is None, reader
        assert not mark.exists(), reader
    pickle.loads(content)
    assert mark.exists(), "what was planted does run where it is unpickled without care"


def test_pickled_objects_in_the_place_of_tensors_are_refused(state: Path, tmp_path: Path) -> None:
    """torch unpickles them with ``torch.load(weights_only=False)``."""
    theirs = dcp.FileSystemReader(state).read_metadata()
    for key in ("weights.matrix", "optimizer.matrix.exp_avg"):
        described = {**theirs.state_dict_metadata, key: BytesStorageMetadata()}
        planted(state, pickle.dumps(dataclasses.replace(theirs, state_dict_metadata=described)))
        with pytest.raises(WeightsError, match=f"found '{key}' as pickled bytes"):
            load_training_state(state, TENSORS)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_pickle_in_a_data_file_runs_nothing(sealed: bool, state: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = io.BytesIO()
    torch.save(Call(os.mkdir, str(mark)), content)
    theirs = dcp.FileSystemReader(state).read_metadata()
    places = {k: dataclasses.replace(v, offset=0, length=content.tell()) for k, v in theirs.storage_data.items()}
    planted(state, pickle.dumps(dataclasses.replace(theirs, storage_data=places)))
    planted(state, content.getvalue(), "__0_0.distcp", sealed=sealed)
    with pytest.raises(ArchonError):
        load_training_state(state, {name: tensor.clone() for name, tensor in TENSORS.items()})
    assert not mark.exists()


@pytest.mark.parametrize("place", ["../outside", "/etc/passwd", "sub/file"])
def test_a_description_that_leads_out_of_its_folder_is_refused(place: str, state: Path) -> None:
    theirs = dcp.FileSystemReader(state).read_metadata()
    places = {k: dataclasses.replace(v, relative_path=place) for k, v in theirs.storage_data.items()}
    planted(state, pickle.dumps(dataclasses.replace(theirs, storage_data=places)), sealed=False)
    with pytest.raises(DamagedError, match=rf"\.metadata: .*found the file '{place}'"):
        SavedState.open(state)


def test_a_seal_that_leads_out_of_its_folder_is_refused(state: Path) -> None:
    seal = read_seal(state)
    assert seal is not None
    (state.parent / "outside").write_text("mine")
    write_seal(state, {**seal, "../outside": seal_whole(state.parent / "outside")})
    with pytest.raises(DamagedError, match=r"checksums\.json: .*'\.\./outside'"):
        SavedState.open(state)


def test_parts_that_do_not_make_up_a_tensor_are_refused(state: Path) -> None:
    """What no part covers would be whatever the memory held."""
    theirs = dcp.FileSystemReader(state).read_metadata()
    entry = theirs.state_dict_metadata["weights.matrix"]
    for sizes in (torch.Size((2, 4)), torch.Size((4, 3))):
        chunk = dataclasses.replace(entry.chunks[0], sizes=sizes)
        described = {**theirs.state_dict_metadata, "weights.matrix": dataclasses.replace(entry, chunks=[chunk])}
        planted(state, pickle.dumps(dataclasses.replace(theirs, state_dict_metadata=described)))
        with pytest.raises(DamagedError, match=r"the parts of 'weights\.matrix' do not make up \(3, 4\)"):
            SavedState.open(state)
    lost = {k: v for k, v in theirs.storage_data.items() if k != MetadataIndex("weights.half", torch.Size((0,)))}
    planted(state, pickle.dumps(dataclasses.replace(theirs, storage_data=lost)))
    with pytest.raises(DamagedError, match=r"'weights\.half' is not stored in any file"):
        SavedState.open(state)


def asks_for_memory(content: bytes) -> bool:
    """Whether a pickle would make Python's reader reserve room for millions of objects, before it reads them."""
    try:
        return any(code.name == "LONG_BINPUT" and argument > 10**6 for code, argument, _ in pickletools.genops(content))
    except ValueError:
        return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=500)
@given(data=st.data())
def test_any_bytes_end_in_a_description_or_in_our_error(data: st.DataObject, written: Path, tmp_path: Path) -> None:
    original = (written / ".metadata").read_bytes()
    start = data.draw(st.integers(0, len(original)))
    middle = data.draw(st.binary(max_size=8))
    content = data.draw(st.sampled_from([original[:start] + middle + original[start + len(middle) :], middle]))
    assume(not asks_for_memory(content))
    file = tmp_path / ".metadata"
    file.write_bytes(content)
    with contextlib.suppress(WeightsError):
        assert isinstance(read_metadata(file), Metadata)
