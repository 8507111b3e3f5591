"""GLM-4 with experts and DeepSeek-V3 with the experts of archon-moe against transformers: logits, every gradient, files
in both forms; their anatomy and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from archon_core import registry
from archon_core.models.anatomy import ExpertsAnatomy
from archon_core.models.box import Box
from archon_core.plugins import ModelSpec
from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.checkpoint.weight_export import gather_buckets, manifest_of
from archon_engine.models.hf_config import config_to_save, load_hf_config
from archon_engine.models.parameter_names import named_weights
from archon_engine.models.weight_conversion import assemble_hf, copy_from, fill_ours, read_from
from archon_engine.options.archon import ArchonOptions
from archon_engine.parallel.plan_checks import check_context_plan, check_tensor_plan
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_deepseek.tiny_config import tiny_deepseek_v3
from archon_models_glm.tiny_config import tiny_glm4_moe
from archon_moe.sharding import ETP_DIM
from transformers_pairs import assert_close, build, compare, make_pair

GLM, DEEPSEEK = tiny_glm4_moe(), tiny_deepseek_v3()
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1000.0}
CASES: dict[str, dict[str, Any]] = {
    "glm": GLM,
    "glm-plain": {**GLM, "attention_bias": False, "use_qk_norm": False, "n_group": 1, "topk_group": 1},
    "glm-tied": {**GLM, "tie_word_embeddings": True, "first_k_dense_replace": 0, "norm_topk_prob": False},
    "glm-two-shared": {**GLM, "n_shared_experts": 2, "first_k_dense_replace": 3, "num_key_value_heads": 1},
    "deepseek": DEEPSEEK,
    "deepseek-halves": {**DEEPSEEK, "rope_interleave": False, "tie_word_embeddings": True},
    "deepseek-whole-queries": {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": DEFAULT_ROPE},
    "deepseek-biased": {**DEEPSEEK, "attention_bias": True, "first_k_dense_replace": 0, "v_head_dim": 12},
}
LENGTHS = (9, 1, 30, 8)
"""Longer than the 16 positions that the rotation of DEEPSEEK was trained for."""


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_those_of_transformers(case: str) -> None:
    compare(CASES[case], LENGTHS, torch.float32, 1e-5)


@pytest.mark.parametrize("entries", [GLM, DEEPSEEK], ids=["glm", "deepseek"])
def test_both_forms_of_files_are_read_without_prediction_layers_and_give_transformers_the_same_logits(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    config = load_hf_config(entries)
    hf, ours, weights, in_memory = make_pair(entries, torch.float32)
    save_hf_weights(named_weights(ours), weights, tmp_path / "saved", config, dtype=torch.float32)
    fused = {
        name: assemble_hf(name, in_memory, copy_from(named_weights(ours)), torch.float32)
        for name in in_memory.hf_shapes
    }
    behind = f"model.layers.{entries['num_hidden_layers']}"
    fused |= {f"{behind}.{name}": torch.ones(3) for name in ("enorm.weight", "mlp.experts.0.up_proj.weight")}
    (tmp_path / "fused").mkdir()
    save_file(fused, tmp_path / "fused" / "model.safetensors", metadata={"format": "pt"})
    for form in ("saved", "fused"):
        again, _ = build(config, torch.float32)
        assert load_hf_weights(again, weights, tmp_path / form).initialised == ()
        for name, weight in named_weights(ours).items():
            assert torch.equal(named_weights(again)[name], weight), (form, name)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids = torch.arange(11)[None]
    assert_close(theirs(ids).logits, hf(ids).logits, 1e-6, "logits")


def test_biases_for_choosing_stay_in_fp32_in_files_and_publications_of_bfloat16(tmp_path: Path) -> None:
    """Choices depend on small differences between biases, and the biases of published models are large."""
    config = load_hf_config(GLM)
    _, module, weights, _ = make_pair(GLM, torch.bfloat16)
    biases = {name: weight for name, weight in named_weights(module).items() if name.endswith("choice_bias")}
    for bias in biases.values():
        bias.copy_(8 + 1e-3 * torch.arange(8.0))
    save_hf_weights(named_weights(module), weights, tmp_path / "hf", config, dtype=torch.bfloat16)
    convert_to_dcp(tmp_path / "hf", tmp_path / "state")
    convert_to_hf(tmp_path / "state", tmp_path / "back")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("hf", "back")]
    assert files[0] == files[1]
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    names = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert names == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)}
    assert all(torch.equal(stored[name], bias) for name, bias in zip(sorted(names), biases.values(), strict=True))
    manifest = manifest_of(weights, torch.bfloat16, version=1)
    assert {entry.name for entry in manifest.tensors if entry.dtype == "float32"} == names
    buckets = gather_buckets(
        named_weights(module),
        weights,
        manifest,
        10**6,
        publishes=True,
        memory=lambda _, n_bytes: torch.empty(n_bytes, dtype=torch.uint8),
    )
    published = {name: tensor for bucket in buckets for name, tensor in bucket.tensors.items()}
    assert all(torch.equal(published[name], stored[name]) for name in stored)


def test_fp8_blocks_are_decoded_from_the_slices_of_each_rank(tmp_path: Path) -> None:
    """Blocks of 5 x 3 fit no size, and the boxes of ranks begin inside blocks."""
    entries = {**DEEPSEEK, "quantization_config": {"quant_method": "fp8", "weight_block_size": [5, 3], "fmt": "e4m3"}}
    module, weights = build(load_hf_config(entries), torch.float32)
    encoded = weights.alternatives[1]
    generator = torch.Generator().manual_seed(2)
    plain, stored = {}, {}
    for name, shape in weights.hf_shapes.items():
        plain[name] = stored[name] = torch.randn(shape, generator=generator)
        if name in encoded.encoded:
            rows, columns = (-(-extent // size) for extent, size in zip(shape, (5, 3), strict=True))
            factors = torch.rand(rows, columns, generator=generator) + 0.5
            stored[name], stored[f"{name}_scale_inv"] = plain[name].to(torch.float8_e4m3fn), factors
            whole = factors.repeat_interleave(5, 0)[: shape[0]].repeat_interleave(3, 1)[:, : shape[1]]
            plain[name] = stored[name].float() * whole
    assert set(plain) - set(encoded.encoded) == {name for name in plain if "proj" not in name}
    save_file(stored, tmp_path / "model.safetensors")
    assert load_hf_weights(module, weights, tmp_path).initialised == ()
    expected, _ = build(load_hf_config(entries), torch.float32)
    with torch.no_grad():
        for name, weight in named_weights(expected).items():
            fill_ours(weight, name, Box.whole(tuple(weight.shape)), weights, read_from(plain))
    for name, weight in named_weights(expected).items():
        assert torch.equal(named_weights(module)[name], weight), name

    def second_half(name: str, weight: torch.Tensor) -> list[tuple[torch.Tensor, Box]]:
        n_rows = weight.shape[0] // 2
        start = (weight.shape[0] - n_rows, *(0 for _ in weight.shape[1:]))
        part = torch.zeros(n_rows, *weight.shape[1:])
        halves[name] = (part, weight.detach()[start[0] :])
        return [(part, Box(start, tuple(part.shape)))]

    halves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    report = load_hf_weights(module, weights, tmp_path, local_boxes=second_half)
    for name, (part, right) in halves.items():
        assert torch.equal(part, right), name
    assert report.bytes_read < 0.6 * (tmp_path / "model.safetensors").stat().st_size
    saved = config_to_save(load_hf_config(entries), critic=False, dtype="bfloat16")
    assert not hasattr(saved, "quantization_config"), "weights are saved plain"


@pytest.mark.parametrize(
    ("case", "critic"), [*((case, False) for case in CASES), ("deepseek", True), ("deepseek-halves", True)]
)
def test_anatomy_and_plan_describe_the_module(case: str, critic: bool) -> None:
    entries = CASES[case]
    spec = registry().get(ModelSpec, entries["model_type"])
    loaded = spec.load()
    arguments = loaded.arguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = loaded.build(arguments, experts=registry().get("moe", "moe").load()(ArchonOptions()))
    plan = loaded.parallel_plan(arguments)
    check_tensor_plan(module, plan)
    check_context_plan(module, plan)
    found = spec.load_part("anatomy")(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
        is_sparse = number >= entries["first_k_dense_replace"]
        assert (layer.experts is not None, layer.intermediate_size == 0) == (is_sparse, is_sparse)
        assert layer.attention.heads == plan.heads
        if layer.experts is not None:
            moe = arguments.moe
            sizes = (moe.n_experts, moe.top_k, moe.intermediate_size, moe.shared_intermediate_size)
            assert layer.experts == ExpertsAnatomy(*sizes)
    assert {name: weight.shape for name, weight in described.items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        is_expert = weight.role == "expert"
        dim = ETP_DIM[attribute] if is_expert else SHARDED_DIM.get((weight.role, attribute))
        assert weight.tensor_dim == dim, name
