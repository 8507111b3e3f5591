"""Qwen3.5: its configurations and checkpoints, of the language model alone and beside a vision encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from archon_core.errors import ModelError
from archon_core.models.parallel_plan import HeadCounts
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_qwen.hybrid_anatomy import anatomy
from archon_models_qwen.hybrid_arguments import Qwen35Arguments, Qwen35MoEArguments
from archon_models_qwen.hybrid_decoder import Qwen35Decoder
from archon_models_qwen.hybrid_weight_map import moe_weight_map
from archon_models_qwen.parallel_plan import hybrid_parallel_plan
from archon_models_qwen.tiny_config import tiny_qwen3_5, tiny_qwen3_5_moe

MakePair = Callable[..., Any]
Family = Callable[[str], Any]

COMPOSITE = {
    "model_type": "qwen3_5",
    "text_config": {**tiny_qwen3_5(), "mtp_num_hidden_layers": 1, "attn_output_gate": True},
    "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2},
}
"""As published: the language model beside a vision encoder."""


def arguments(entries: dict[str, Any]) -> Qwen35Arguments:
    return Qwen35Arguments.from_hf_config(load_hf_config(entries), critic=False)


def test_of_a_composite_the_language_model_is_read() -> None:
    made = arguments(COMPOSITE)
    assert (made.hidden_size, made.linear, made.rope.rotated_dim) == (32, (True, True, True, False), 4)
    [decision] = made.decisions
    assert (decision.option, decision.requested, decision.effective) == ("mtp_num_hidden_layers", "1", "0")
    assert arguments(tiny_qwen3_5()).decisions == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_num_value_heads": 6}, "found linear_num_value_heads 6 and linear_num_key_heads 4; the second"),
        ({"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim: found 0; allowed are numbers from 1"),
        ({"attn_output_gate": False}, "attn_output_gate: found False; the architecture has True"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype: found 'bfloat16'"),
        ({"use_mrope": True}, "use_mrope = True"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments({**tiny_qwen3_5(), **changes})


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize(
    "entries",
    [tiny_qwen3_5(), COMPOSITE, {**tiny_qwen3_5(), "layer_types": None, "attention_bias": True}],
    ids=["tiny", "composite", "no layer types"],
)
def test_the_anatomy_is_that_of_the_module(entries: dict[str, Any], critic: bool) -> None:
    made = Qwen35Arguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = Qwen35Decoder(made)
    plan, found = hybrid_parallel_plan(made), anatomy(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
    real = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert {name: weight.shape for name, weight in described.items()} == real
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        assert weight.tensor_dim == SHARDED_DIM.get((weight.role, attribute)), name
    assert [layer.attention.delta is not None for layer in found.layers] == list(made.linear)
    assert found.attention.heads == HeadCounts(made.n_heads, made.n_kv_heads)
    assert found.attention.rotated_dim == made.rope.rotated_dim


@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_models_with_one_kind_of_layer_have_a_plan(kind: str) -> None:
    made = arguments({**tiny_qwen3_5(), "layer_types": [kind] * 4})
    with torch.device("meta"):
        hybrid_parallel_plan(made).validate(Qwen35Decoder(made))


def test_published_checkpoints_load_without_vision_and_prediction_weights(
    make_pair: MakePair, family: Family, tmp_path: Path
) -> None:
    pair = make_pair(tiny_qwen3_5())
    pair.hf.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    published = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in stored.items()
    }
    published |= {name: torch.zeros(2) for name in ("model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight")}
    save_file(published, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(COMPOSITE))
    config = load_hf_config(tmp_path)
    model, build = family("qwen3_5")
    made = model.arguments.from_hf_config(config, critic=False)
    module = build(made)
    report = load_hf_weights(module, model.weight_map(made).resolve(weight_shapes(module)), tmp_path)
    assert all(torch.equal(named_weights(module)[name], weight) for name, weight in named_weights(pair.ours).items())
    assert report.dropped == {
        "the language model alone is trained": ("model.visual.blocks.0.attn.qkv.weight",),
        "multi-token prediction is not trained": ("mtp.fc.weight",),
    }


def test_files_written_are_those_of_transformers_byte_for_byte(make_pair: MakePair, tmp_path: Path) -> None:
    pair = make_pair(tiny_qwen3_5())
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    pair.hf.save_pretrained(theirs, max_shard_size=20_000)
    save_hf_weights(
        named_weights(pair.ours), pair.weights, ours, pair.config, dtype=torch.float32, max_shard_bytes=20_000
    )
    names = sorted(path.name for path in theirs.glob("*.safetensors"))
    assert len(names) > 3
    assert names == sorted(path.name for path in ours.glob("*.safetensors"))
    assert [name for name in names if (ours / name).read_bytes() != (theirs / name).read_bytes()] == []


@pytest.mark.parametrize("prefix", ["model", "model.language_model"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_every_form_of_checkpoints_with_experts_is_known(prefix: str, is_fused: bool) -> None:
    config = load_hf_config(tiny_qwen3_5_moe())
    made = Qwen35MoEArguments.from_hf_config(config, critic=False)
    experts = {"gate_proj": (8, 16, 32), "up_proj": (8, 16, 32), "down_proj": (8, 32, 16)}
    shapes = {"embed.weight": (128, 32), "norm.weight": (32,), "head.weight": (128, 32)}
    with torch.device("meta"):
        dense = Qwen35Decoder(arguments(tiny_qwen3_5()))
    shapes |= {name: shape for name, shape in weight_shapes(dense).items() if ".mlp." not in name}
    for layer in range(4):
        block = f"layers.{layer}.moe"
        shapes |= {f"{block}.experts.{name}": shape for name, shape in experts.items()}
        shapes |= {f"{block}.shared.{name}.weight": (24, 32) for name in ("gate_proj", "up_proj")}
        shapes |= {f"{block}.shared.down_proj.weight": (32, 24), f"{block}.shared_gate.weight": (1, 32)}
        shapes |= {f"{block}.router.weight": (8, 32)}
    weights = moe_weight_map(made).resolve(shapes)
    form = next(
        form
        for form in (weights, *weights.alternatives)
        if f"{prefix}.norm.weight" in form.hf_shapes
        and (f"{prefix}.layers.0.mlp.experts.gate_up_proj" in form.hf_shapes) == is_fused
    )
    found, report = form_of({**form.hf_shapes, "mtp.layers.0.mlp.experts.down_proj": (8, 32, 16)}, weights)
    assert report.fits
    assert found.hf_shapes == form.hf_shapes
