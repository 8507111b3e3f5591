from __future__ import annotations

import json
from pathlib import Path

import pytest

from archon_core.errors import ModelError
from archon_engine.models.hf_config import (
    architecture_name,
    checkpoint_folder,
    config_file,
    config_to_save,
    load_hf_config,
    refuse_unknown_entries,
)

ENTRIES = {"model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 2}


def test_an_inline_mapping_and_a_folder_give_the_same_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ENTRIES))
    inline, from_folder = load_hf_config(ENTRIES), load_hf_config(tmp_path)
    assert inline.hidden_size == 48
    assert {**inline.to_dict(), "_name_or_path": ""} == {**from_folder.to_dict(), "_name_or_path": ""}
    assert ENTRIES["model_type"] == "qwen3", "the caller's mapping is left as it was"


def test_an_unknown_model_type_gets_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"'qwen33' is unknown.*did you mean 'qwen3'"):
        load_hf_config({"model_type": "qwen33"})


def test_a_mapping_without_model_type_says_what_to_write() -> None:
    with pytest.raises(ModelError, match="model_type: qwen3"):
        load_hf_config({"hidden_size": 4})


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": "64"}, {"head_dim": 5}, {"rope_parameters": {"rope_type": "longrope"}}],
    ids=["wrong type", "odd head", "incomplete rope"],
)
def test_what_transformers_refuses_is_one_kind_of_error(wrong: dict) -> None:
    with pytest.raises(ModelError, match="transformers refuses this qwen3 configuration"):
        load_hf_config({**ENTRIES, **wrong})


def test_a_folder_without_or_with_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read it as JSON"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="found a list"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "model_type": "qwen2"}')
    with pytest.raises(ModelError, match="found the name 'model_type' twice in one object; keep one of them"):
        load_hf_config(tmp_path)


@pytest.mark.parametrize("path", ["./missing/folder", "/missing", "a/b/c"])
def test_a_path_that_is_no_hub_id_is_never_looked_up(path: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_hf_config(path)


def test_a_hub_id_that_cannot_be_reached_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no such folder, and cannot read it as a hub id.*network"):
        checkpoint_folder("archon-nobody/no-such-model")


def test_an_entry_that_nobody_knows_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match="hiden_size = 64; did you mean 'hidden_size'"):
        refuse_unknown_entries(load_hf_config({**ENTRIES, "hiden_size": 64}))


def test_entries_that_change_no_number_pass() -> None:
    config = load_hf_config(
        {
            **ENTRIES,
            "use_mrope": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "unsloth_fixed": True,
            "rope_theta": 1e6,
            "rope_scaling": None,
            "_attn_implementation_autoset": True,
            "bos_token_id": 1,
        }
    )
    refuse_unknown_entries(config)


def test_bidirectional_attention_is_refused_though_its_entry_is_false() -> None:
    with pytest.raises(ModelError, match="is_causal"):
        refuse_unknown_entries(load_hf_config({**ENTRIES, "is_causal": False}))


def test_an_entry_that_the_model_package_honours_passes() -> None:
    config = load_hf_config({"model_type": "qwen2", "head_dim": 16})
    with pytest.raises(ModelError, match="head_dim"):
        refuse_unknown_entries(config)
    refuse_unknown_entries(config, honoured=("head_dim",))


def test_a_saved_configuration_names_the_class_that_loads_it() -> None:
    config = load_hf_config(ENTRIES)
    actor = config_to_save(config, critic=False, dtype="bfloat16").to_dict()
    critic = config_to_save(config, critic=True, dtype="float32")
    assert (actor["architectures"], actor["dtype"]) == (["Qwen3ForCausalLM"], "bfloat16")
    assert (critic.architectures, critic.num_labels) == (["Qwen3ForSequenceClassification"], 1)
    assert config.architectures is None, "the original is left as it was"


def test_the_saved_configuration_of_a_quantised_checkpoint_is_that_of_plain_weights() -> None:
    config = load_hf_config({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}})
    assert "quantization_config" not in json.loads(config_file(config, critic=False, dtype="bfloat16"))
    assert config.quantization_config == {"quant_method": "mxfp4"}, "the original is left as it was"


def test_a_model_type_without_such_a_class_is_refused() -> None:
    with pytest.raises(ModelError, match="no causal language model"):
        architecture_name("clip", critic=False)


@pytest.mark.parametrize("model_type", ["phi3", "llama", "glm4"])
def test_a_saved_configuration_can_be_read_again_with_every_entry_known(model_type: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = load_hf_config({**sizes, "model_type": model_type})
    entries = json.loads(config_file(config, critic=False, dtype="float32"))
    refuse_unknown_entries(load_hf_config(entries))


def test_an_old_rotary_entry_that_contradicts_rope_parameters_is_unknown() -> None:
    config = load_hf_config({**ENTRIES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "share": 0.5}})
    config.share = 0.5
    refuse_unknown_entries(config)
    config.share = 1.0
    with pytest.raises(ModelError, match=r"share = 1\.0"):
        refuse_unknown_entries(config)
