"""Which differences between two checkpoint folders their fingerprints show."""

import json

import pytest
import torch
from safetensors.torch import save_file

from archon_core.errors import DamagedError
from archon_engine.checkpoint.fingerprint import checkpoint_fingerprint

TENSORS = {"a": torch.arange(600.0).view(20, 30), "b": torch.arange(5.0), "empty": torch.zeros(0)}
CONFIG = {"model_type": "qwen3", "rope_theta": 1e6, "transformers_version": "5.0", "dtype": "float32"}


@pytest.fixture
def write(tmp_path):
    def write(tensors=TENSORS, config=CONFIG, *, files=1) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if files == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            names = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
            for name, file in names.items():
                save_file({name: tensors[name]}, folder / file)
            index = {"metadata": {"total_size": 1}, "weight_map": names}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return checkpoint_fingerprint(folder)

    return write


def test_files_and_versions_of_libraries_make_no_difference(write):
    assert write() == write(files=3) == write(config={**CONFIG, "transformers_version": "6.0", "dtype": "bfloat16"})


@pytest.mark.parametrize(
    "tensors",
    [
        {**TENSORS, "a": TENSORS["a"] + 1e-3},
        {**TENSORS, "a": TENSORS["a"].bfloat16()},
        {**TENSORS, "a": TENSORS["a"].view(30, 20)},
        {**TENSORS, "b": TENSORS["b"].flip(0)},
        {"a": TENSORS["a"], "c": TENSORS["b"], "empty": TENSORS["empty"]},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
    ],
    ids=["values", "dtype", "shape", "order", "name", "missing"],
)
def test_other_weights_have_another_fingerprint(write, tensors):
    assert write(tensors) != write()


def test_another_configuration_has_another_fingerprint(write):
    assert write(config={**CONFIG, "rope_theta": 1e4}) != write()


def test_folders_without_weights_have_none_and_damaged_ones_are_errors(tmp_path):
    assert checkpoint_fingerprint(tmp_path) == ""
    (tmp_path / "model.safetensors").write_bytes(b"12")
    with pytest.raises(DamagedError, match=r"cannot read it .*; copy it again"):
        checkpoint_fingerprint(tmp_path)
