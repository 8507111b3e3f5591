"""Qwen3-MoE with the experts of archon-moe against transformers: logits, every gradient, and files in both forms."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout
from archon_core.contracts.engine_config import EngineConfig
from archon_core.errors import UnknownNameError
from archon_core.plugins import Registry, registry
from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.parameter_names import named_weights
from archon_engine.models.weight_conversion import assemble_hf, copy_from
from archon_models_qwen.tiny_config import tiny_qwen3_moe
from archon_train.experiment import load_config
from archon_train.preflight import plan_run
from archon_train.run_plan import install_commands
from transformers_pairs import build, compare, make_pair


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    layers = draw(st.integers(1, 4))
    step = draw(st.integers(1, layers))
    with_experts = [layer for layer in range(layers) if (layer + 1) % step == 0]
    n_experts = draw(st.integers(1, 9))
    entries: dict[str, Any] = {
        "model_type": "qwen3_moe",
        "vocab_size": draw(st.integers(2, 40)),
        "hidden_size": draw(st.integers(4, 24)),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 6, 8])),
        "hidden_act": draw(st.sampled_from(["silu", "gelu"])),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "moe_intermediate_size": draw(st.integers(1, 20)),
        "num_experts": n_experts,
        "num_experts_per_tok": draw(st.integers(1, n_experts)),
        "norm_topk_prob": draw(st.booleans()),
        "decoder_sparse_step": step,
        "mlp_only_layers": draw(st.lists(st.integers(0, layers), max_size=2)),
    }
    if set(with_experts) <= set(entries["mlp_only_layers"]):
        entries["mlp_only_layers"] = []
    if draw(st.booleans()):
        entries |= {"use_sliding_window": True, "sliding_window": draw(st.sampled_from([1, 3, 8]))}
    return entries


@given(entries=configurations(), lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4).map(tuple))
@settings(max_examples=25, deadline=None)
def test_logits_and_gradients_equal_those_of_transformers(entries: dict[str, Any], lengths: tuple[int, ...]) -> None:
    compare(entries, lengths, torch.float32, 1e-5)


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_in_float64_they_are_equal_but_for_what_transformers_rounds(
    norm_topk_prob: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its norms, angles and routers round to fp32 inside; lifted, nothing is left of the difference."""
    from transformers.models.qwen3_moe import modeling_qwen3_moe as theirs

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    def route(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, chosen = (x.reshape(-1, self.hidden_dim) @ self.weight.T).softmax(-1).topk(self.top_k)
        return x, best / best.sum(-1, keepdim=True) if self.norm_topk_prob else best, chosen

    def softmax(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        return x.softmax(dim)

    monkeypatch.setattr(theirs.Qwen3MoeRMSNorm, "forward", norm)
    monkeypatch.setattr(theirs.Qwen3MoeRotaryEmbedding, "forward", rotary)
    monkeypatch.setattr(theirs.Qwen3MoeTopKRouter, "forward", route)
    monkeypatch.setattr(theirs.nn.functional, "softmax", softmax)
    compare({**tiny_qwen3_moe(), "norm_topk_prob": norm_topk_prob}, (9, 1, 30, 8), torch.float64, 1e-13)


@given(entries=configurations(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=10, deadline=None)
def test_saved_folders_are_read_back_bit_by_bit_and_give_transformers_the_same_logits(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any], dtype: torch.dtype
) -> None:
    folder = tmp_path_factory.mktemp("moe")
    config = load_hf_config(entries)
    hf, ours, weights, in_memory = make_pair(entries, dtype)
    save_hf_weights(named_weights(ours), weights, folder / "saved", config, dtype=dtype)
    assert not any(name.endswith("experts.gate_up_proj") for name in load_file(folder / "saved" / "model.safetensors"))
    fused = {name: assemble_hf(name, in_memory, copy_from(named_weights(ours)), dtype) for name in in_memory.hf_shapes}
    (folder / "fused").mkdir()
    save_file(fused, folder / "fused" / "model.safetensors", metadata={"format": "pt"})
    for form in ("saved", "fused"):
        again, _ = build(config, dtype)
        assert load_hf_weights(again, weights, folder / form).initialised == ()
        for name, weight in named_weights(ours).items():
            assert torch.equal(named_weights(again)[name], weight), (form, name)
    options = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": dtype}
    theirs, info = AutoModelForCausalLM.from_pretrained(folder / "saved", output_loading_info=True, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert all(torch.equal(tensor, hf.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    if (
        dtype == torch.float32
    ):  # in bf16 a model that is cast rounds its rotary frequencies, one that is loaded does not
        ids = torch.arange(11)[None] % entries["vocab_size"]
        for parameter in theirs.parameters():  # in memory of its own: kernels depend on how what they read is aligned
            parameter.data = parameter.data.clone()
        assert torch.equal(theirs(ids).logits, hf(ids).logits)


def test_without_the_package_that_builds_experts_dry_runs_and_engines_name_it(tmp_path: Path) -> None:
    without = Registry([status for status in registry().plugins if status.distribution != "archon-moe"])
    entries = "\n    ".join(f"{name}: {value}" for name, value in tiny_qwen3_moe().items())
    (tmp_path / "run.yaml").write_text(f"algorithm: sft\nactor:\n  model_config:\n    {entries}\n")
    plan = plan_run(load_config(tmp_path / "run.yaml", (), without, allow_missing=True), without)
    assert [need.package.name for need in plan.needs] == ["archon-moe"]
    assert list(install_commands(plan.needs)) == ["pip install archon-moe"]
    config = EngineConfig(model_config=tiny_qwen3_moe(), dtype="float32")
    layout = parse_layout("archon:d1")
    with pytest.raises(UnknownNameError, match=r"model 'qwen3_moe' has experts.*archon-moe.*: pip install archon-moe"):
        assemble(config, role="actor", layout=layout, seed=1, total_steps=1, registry=without)


def test_a_checkpoint_with_fused_experts_becomes_a_training_state_and_that_a_folder_of_transformers(
    tmp_path: Path,
) -> None:
    hf, _, _, _ = make_pair(tiny_qwen3_moe(), torch.float32)
    hf.save_pretrained(tmp_path / "theirs")
    (tmp_path / "fused").mkdir()
    fused = {name: tensor.contiguous() for name, tensor in hf.state_dict().items()}
    save_file(fused, tmp_path / "fused" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "fused")
    convert_to_dcp(tmp_path / "fused", tmp_path / "state")
    convert_to_hf(tmp_path / "state", tmp_path / "back")
    theirs, back = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("theirs", "back"))
    assert back == theirs
