"""transformers -> Archon -> transformers, through files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.errors import WeightsError
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.checkpoint.weight_files import INDEX_FILE
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import initialize_weights, materialize_empty
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_models_qwen.tiny_config import tiny_qwen2, tiny_qwen3

MakePair = Callable[..., Any]
Family = Callable[[str], Any]
FromFolder = Callable[..., tuple[nn.Module, Any, tuple[str, ...]]]

CASES = {
    "qwen2": tiny_qwen2(),
    "qwen2-tied": {**tiny_qwen2(), "tie_word_embeddings": True},
    "qwen3": tiny_qwen3(),
    "qwen3-tied": {**tiny_qwen3(), "tie_word_embeddings": True},
    "qwen3-bias": {**tiny_qwen3(), "attention_bias": True, "num_hidden_layers": 12},
}


@pytest.fixture(scope="module")
def from_folder(family: Family) -> FromFolder:
    """A decoder as an engine makes it: from the folder alone, built on the meta device."""

    def load(folder: Path, *, critic: bool = False) -> tuple[nn.Module, Any, tuple[str, ...]]:
        config = load_hf_config(folder)
        model, build = family(config.model_type)
        arguments = model.arguments.from_hf_config(config, critic=critic)
        with torch.device("meta"):
            module = build(arguments)
        materialize_empty(module, "cpu")
        weights = model.weight_map(arguments).resolve(weight_shapes(module))
        report = load_hf_weights(module, weights, folder)
        return module, weights, report.initialised

    return load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_files_written_are_those_read_byte_for_byte_shards_and_index_included(
    make_pair: MakePair, from_folder: FromFolder, case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    pair = make_pair(CASES[case], dtype=dtype)
    pair.hf.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    module, weights, _ = from_folder(tmp_path / "theirs")
    ours = tmp_path / "ours"
    save_hf_weights(named_weights(module), weights, ours, pair.config, dtype=dtype, max_shard_bytes=20_000)
    written = sorted(path.name for path in ours.glob("*.safetensors*"))
    assert written == sorted(path.name for path in (tmp_path / "theirs").glob("*.safetensors*"))
    assert len(written) > 3
    for name in set(written) - {INDEX_FILE}:
        assert (ours / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    assert json.loads((ours / INDEX_FILE).read_text()) == json.loads((tmp_path / "theirs" / INDEX_FILE).read_text())
    saved, original = (json.loads((f / "config.json").read_text()) for f in (ours, tmp_path / "theirs"))
    older = {"torch_dtype": original["dtype"], "rope_theta": original["rope_parameters"]["rope_theta"]}
    assert saved == {**original, **older, "rope_scaling": None}


def save(pair: Any, folder: Path, *, critic: bool = False) -> None:
    save_hf_weights(named_weights(pair.ours), pair.weights, folder, pair.config, dtype=torch.float32, critic=critic)


def test_tied_weights_are_one_parameter_and_are_stored_once(
    make_pair: MakePair, from_folder: FromFolder, tmp_path: Path
) -> None:
    save(make_pair(CASES["qwen3-tied"]), tmp_path)
    module, weights, _ = from_folder(tmp_path)
    assert module.head.weight is module.embed.weight
    assert "lm_head.weight" not in weights.hf_shapes


def test_a_new_critic_takes_a_language_models_body_and_draws_its_head(
    make_pair: MakePair, from_folder: FromFolder, tmp_path: Path
) -> None:
    pair = make_pair(CASES["qwen3"])
    pair.hf.save_pretrained(tmp_path / "lm")
    module, weights, initialised = from_folder(tmp_path / "lm", critic=True)
    assert initialised == ("head.weight",)
    initialize_weights(module, 5, 0.02, only=initialised)
    assert torch.equal(module.layers["2"].mlp.up_proj.weight, pair.ours.layers["2"].mlp.up_proj.weight)
    values = critic_values(module)

    save_hf_weights(named_weights(module), weights, tmp_path / "critic", pair.config, dtype=torch.float32, critic=True)
    again, _, initialised = from_folder(tmp_path / "critic", critic=True)
    assert initialised == ()
    assert torch.equal(critic_values(again), values)
    classifier, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert classifier.config.num_labels == 1
    score = classifier(torch.arange(9)[None]).logits[0, 0]
    torch.testing.assert_close(values[-1], score, rtol=1e-5, atol=1e-5)


def critic_values(module: nn.Module) -> torch.Tensor:
    packed = PackedSequences.from_lengths((9,), head=HeadInputs(outputs=("values",)))
    return module(torch.arange(9), packed)["values"]


def test_a_critics_checkpoint_does_not_pass_for_a_language_model(
    make_pair: MakePair, from_folder: FromFolder, tmp_path: Path
) -> None:
    save(make_pair(CASES["qwen3"], critic=True), tmp_path, critic=True)
    with pytest.raises(WeightsError) as refused:
        from_folder(tmp_path)
    assert "missing     lm_head.weight" in str(refused.value)
    assert "unexpected  score.weight" in str(refused.value)


def test_a_checkpoint_of_another_size_is_refused_in_a_few_lines(
    make_pair: MakePair, from_folder: FromFolder, tmp_path: Path
) -> None:
    make_pair(CASES["qwen3-bias"]).hf.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries |= {"hidden_size": 40, "num_hidden_layers": 13, "layer_types": None, "attention_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(WeightsError) as refused:
        from_folder(tmp_path)
    message = str(refused.value)
    assert "missing     model.layers.12.self_attn.q_proj.weight" in message
    assert "unexpected  model.layers.*.self_attn.q_proj.bias (12: 0 to 11)" in message
    assert "misshapen   model.layers.*.mlp.up_proj.weight (12: 0 to 11): found (48, 32), expected (48, 40)" in message
    assert len(message.splitlines()) < 45
