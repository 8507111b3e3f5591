"""Configurations as hubs have them: with entries that ``transformers`` does not know, left by other code."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest

from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config
from archon_scaffold.models import reading, tiny
from archon_scaffold.models.source import read_source

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}

HUB_FORMS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "is_llama_config": True,
        "my_flag": [1, {"of": "ours"}],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "pad_token_id": 0,
        "query_pre_attn_scalar": 64,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "embedding_dropout": 0.1,
        "residual_dropout": 0.1,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-05,
        "mlp_type": "default",
        "norm_epsilon": 1e-05,
        "norm_type": "layer_norm",
        "rope_theta": 999999.4420358813,
        "sliding_window": 4096,
        "use_bias": True,
    },
}

UNKNOWN = {
    "llama": {"my_flag": [1, {"of": "ours"}]},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh"},
    "starcoder2": {"layer_norm_epsilon": 1e-05, "mlp_type": "default", "norm_type": "layer_norm"},
}


def entries_of(model_type):
    return {"model_type": model_type, **COMMON, **HUB_FORMS[model_type]}


@pytest.fixture
def arguments_of(monkeypatch):
    """``ModelArguments`` and ``FIXED`` of a written package."""

    def import_arguments(package):
        monkeypatch.syspath_prepend(str(package.folder / "src"))
        return importlib.import_module(f"{package.folder.name.replace('-', '_')}.arguments")

    return import_arguments


@pytest.mark.parametrize("model_type", HUB_FORMS)
def test_a_package_has_no_gap_and_takes_the_checkpoint_as_it_is(write, arguments_of, model_type):
    entries = entries_of(model_type)
    package = write(entries)
    assert package.architecture.gaps == ()
    assert not UNKNOWN[model_type].keys() & package.architecture.tiny.keys()
    assert not any(value for name, value in package.architecture.tiny.items() if name.endswith("dropout"))
    module = arguments_of(package)
    assert UNKNOWN[model_type].items() <= module.FIXED.items()
    read = module.ModelArguments.from_hf_config(load_hf_config(entries), critic=False)
    assert (read.hidden_size, read.n_heads, read.vocab_size) == (256, 8, 49152)
    bare = {name: value for name, value in entries.items() if name not in UNKNOWN[model_type]}
    assert module.ModelArguments.from_hf_config(load_hf_config(bare), critic=False) == read
    for name in UNKNOWN[model_type]:
        right = module.FIXED[name]
        alone = re.escape(f"found {name} 'another'; this decoder is written for {name} {right!r}: extend it")
        with pytest.raises(ModelError, match=alone):
            module.ModelArguments.from_hf_config(load_hf_config({**entries, name: "another"}), critic=False)


def test_an_entry_that_is_off_may_be_null_or_false(write, arguments_of):
    package = write({"model_type": "gemma2"})
    module = arguments_of(package)
    off = [name for name, value in module.FIXED.items() if value is None or value is False]
    assert off
    for name in off:
        config = load_hf_config(package.architecture.tiny)
        for value in (None, False):
            vars(config)[name] = value
            module.ModelArguments.from_hf_config(config, critic=False)
        for value in (True, 0):
            vars(config)[name] = value
            if value != module.FIXED[name]:
                with pytest.raises(ModelError, match=f"found {name} {value!r}; this decoder is written for {name} "):
                    module.ModelArguments.from_hf_config(config, critic=False)


def test_the_packages_own_tests_of_arguments_pass(write, arguments_of):
    package = write(entries_of("starcoder2"))
    fixed = arguments_of(package).FIXED
    namespace: dict[str, Any] = {"__name__": "test_arguments"}
    exec(package.text("tests/test_arguments.py"), namespace)
    tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
    asks_for_another = tests.pop("test_an_entry_that_asks_for_another_form_is_refused")
    for name in fixed:
        asks_for_another(name)
    assert "test_the_values_that_the_decoder_is_written_for_are_accepted" in tests
    for test in tests.values():
        test()


def test_quantised_weights_are_refused_by_name(tmp_path):
    quantised = {**entries_of("llama"), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised), encoding="utf-8")
    with pytest.raises(ModelError, match=r"found quantization_config \(quant_method 'gptq'\); allowed is none"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(("name", "value"), [("attention_bias", True), ("hidden_act", "gelu")])
def test_an_entry_that_changes_what_transformers_computes_stays_though_its_class_does_not_declare_it(
    tmp_path, monkeypatch, name, value
):
    for module in (tiny, reading):
        monkeypatch.setattr(module, "unknown_entries", lambda _entries, _config: {name: value})
    (tmp_path / "config.json").write_text(json.dumps({**entries_of("llama"), name: value}), encoding="utf-8")
    architecture, twin = reading.read_architecture(read_source(str(tmp_path)))
    assert architecture.tiny[name] == getattr(twin.config, name) == value
    assert architecture.qkv_bias is (name == "attention_bias")
