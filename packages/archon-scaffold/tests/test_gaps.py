"""Gaps are reported in the code, in a failing test and by the command, never left out silently."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from archon_core.errors import ModelError
from archon_scaffold.models.parity import find_difference
from archon_scaffold.models.source import read_source
from archon_scaffold.models.twin import build_twin
from archon_scaffold.models.writing import write_model
from archon_scaffold.names import PackageName

GAPS = {
    "ministral3": (
        "attention",
        "layers.0.attention is the first part whose output differs from transformers'",
        "model",
    ),
    "olmo": ("layer", "layers hold no norms beside attention and feed-forward block", "model"),
    "bitnet": ("attention", "holds attn_sub_norm.weight, other than Llama's", "model"),
    "apertus": ("feed-forward", "XIELUActivation is no activation that the configuration names", "model"),
    "axk1": ("feed-forward", "post_mlp_layernorm.weight, or are in layers, that no rule covers", "model"),
    "minicpm3": ("decoder", "the input of the first layer is not the embedding times a known factor", "model"),
    "hy_v3": ("feed-forward", "the expert blocks hold gate.weight", "model"),
}


@pytest.mark.parametrize("model_type", GAPS)
def test_a_gap_is_named_marked_and_fails(write, model_type):
    place, text, module = GAPS[model_type]
    package = write({"model_type": model_type})
    assert any(gap.place == place and text in gap.text for gap in package.architecture.gaps), package.architecture.gaps
    marked = package.text(module).replace("\n        #", "")
    assert f"GAP: {package.architecture.gaps_at(place)[0].text}" in marked
    assert "GAP" in package.text("tests/test_gaps.py")
    assert "Missing features" in package.text("README.md")
    assert "ModelPluginSuite" in package.text("tests/test_model.py")


def test_the_test_of_a_gap_fails_with_its_explanation(write):
    package = write({"model_type": "ministral3"})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_gaps.py"]
    done = subprocess.run(command, cwd=package.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\nattention: layers.0.attention is the first part whose output differs" in done.stdout


def test_layers_that_only_the_whole_model_has_are_in_the_small_one_too(write):
    sparse = {"model_type": "qwen3_moe", "num_hidden_layers": 8}
    assert write(sparse).architecture.experts.sparse == ""
    mixed = write({**sparse, "mlp_only_layers": [6]}).architecture
    assert mixed.gaps == ()
    assert "config.mlp_only_layers" in mixed.experts.sparse


MISTAKES = {
    "layer": ("return x + self.mlp(", "return x + 1.01 * self.mlp("),
    "attention": ("rotation.apply(k)", "k"),
    "feed-forward": ("a.intermediate_size, a.hidden_act)", "a.intermediate_size, 'relu')"),
    "decoder": ("return self.head(self.norm(x)", "return self.head(1.01 * self.norm(x)"),
}


@pytest.mark.parametrize("place", MISTAKES)
def test_a_difference_that_nothing_explains_is_found_where_it_begins(write, tmp_path, place):
    package = write({"model_type": "llama"})
    shutil.copytree(package.folder / "src", tmp_path / "src")
    module = package.folder.name.replace("-", "_")
    twin = build_twin(package.architecture.tiny)
    assert find_difference(tmp_path / "src", module, twin) is None
    right, wrong = MISTAKES[place]
    file = tmp_path / "src" / module / "model.py"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    found = find_difference(tmp_path / "src", module, twin)
    assert found.place == place, found
    assert "the first part whose output differs from transformers'" in found.text
    assert module not in sys.modules


def test_weights_that_no_rule_covers_are_found(write, tmp_path):
    package = write({"model_type": "llama"})
    shutil.copytree(package.folder / "src", tmp_path / "src")
    module = package.folder.name.replace("-", "_")
    file = tmp_path / "src" / module / "weight_map.py"
    file.write_text(file.read_text().replace("post_attention_layernorm", "post_layernorm"))
    found = find_difference(tmp_path / "src", module, build_twin(package.architecture.tiny))
    assert (found.place, "post_attention_layernorm" in found.text) == ("weights", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "found no model_type; give a Hugging Face config.json"),
        ("[]", "found no model_type"),
        ("{", "found no readable JSON"),
        ('{"model_type": "lama"}', "'lama' is unknown to transformers.*did you mean 'llama'"),
        ('{"model_type": "gemma4_text"}', "'gemma4_text' is not a Llama-like decoder: .*per-layer attribute"),
        ('{"model_type": "hunyuan_v1_dense"}', "transformers cannot build the hunyuan_v1_dense of this configuration"),
        ('{"model_type": "gpt2"}', "'gpt2' is not a Llama-like decoder: its configuration has no rope_parameters"),
        ('{"model_type": "musicgen"}', "several language models beside other parts; give the configuration of one"),
        ('{"model_type": "clip"}', "transformers has no causal language model of that type; give the"),
        ('{"model_type": "qwen2_vl"}', "'qwen2_vl_text'.* beside other parts, but transformers has no causal language"),
        ('{"model_type": "gpt_neox"}', "hold attention, .*archon verify CONFIG shows .*PORTING.md"),
        ('{"model_type": "bert"}', "not a Llama-like decoder"),
        ('{"model_type": "vit"}', "no causal language model"),
        ('{"model_type": "gemma3"}', "beside other parts; write its text_config .model_type 'gemma3_text'. to"),
        (
            '{"model_type": "llama", "num_attention_heads": 0, "head_dim": -1}',
            "found num_attention_heads 0, head_dim -1;",
        ),
    ],
)
def test_what_is_no_decoder_of_the_llama_line_is_refused_and_leaves_nothing(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        write_model(PackageName("x", "x"), tmp_path / "out" / "x", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"found no config\.json in that folder"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("source", ["", " ", "nowhere/config.json/at/all", "./none"])
def test_a_source_that_is_nothing_is_refused_with_what_may_stand_there(source):
    with pytest.raises(ModelError, match=r"^--from-hf: .*a config\.json, a folder that holds one, or a hub id"):
        read_source(source)
