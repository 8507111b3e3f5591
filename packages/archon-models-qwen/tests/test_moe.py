"""Qwen3-MoE: its arguments, its plan, and its experts' weights in both forms. Who computes experts is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError, WeightsError
from archon_core.models.box import Box
from archon_core.models.stage import Stage
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import materialize_empty
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_models_qwen.moe_arguments import QwenMoEArguments
from archon_models_qwen.parallel_plan import moe_parallel_plan
from archon_models_qwen.tiny_config import tiny_qwen3_moe

MakePair = Callable[..., Any]
Family = Callable[[str], Any]
LENGTHS = (7, 1, 20, 4)


def arguments(**changes: Any) -> QwenMoEArguments:
    return QwenMoEArguments.from_hf_config(load_hf_config({**tiny_qwen3_moe(), **changes}), critic=False)


def test_settings_are_those_of_the_configuration() -> None:
    made = arguments(num_experts=12, num_experts_per_tok=3, moe_intermediate_size=20, norm_topk_prob=False)
    assert made.moe == MoESettings(hidden_size=32, intermediate_size=20, n_experts=12, top_k=3, norm_topk_prob=False)
    assert (made.qk_norm, made.qkv_bias, made.output_bias) == (True, False, False)
    biased = arguments(attention_bias=True)
    assert (biased.qkv_bias, biased.output_bias) == (True, True)


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({"mlp_only_layers": []}, "1111"),
        ({"mlp_only_layers": None, "decoder_sparse_step": 2}, "0101"),
        ({"mlp_only_layers": [3], "decoder_sparse_step": 2}, "0100"),
        ({"mlp_only_layers": [0, 2, 9]}, "0101"),
        ({"mlp_only_layers": [], "decoder_sparse_step": 3}, "0010"),
    ],
)
def test_layers_have_experts_where_those_of_transformers_have(
    changes: dict[str, Any], sparse: str, family: Family
) -> None:
    entries = {**tiny_qwen3_moe(), **changes}
    made = arguments(**changes)
    assert "".join(str(int(has_experts)) for has_experts in made.sparse) == sparse
    theirs = AutoModelForCausalLM.from_config(load_hf_config(entries))
    assert "".join(str(int(hasattr(layer.mlp, "experts"))) for layer in theirs.model.layers) == sparse
    with torch.device("meta"):
        ours = family("qwen3_moe")[1](made)
    assert "".join(str(int(hasattr(layer, "moe"))) for layer in ours.layers.values()) == sparse
    assert all(hasattr(layer, "mlp") != hasattr(layer, "moe") for layer in ours.layers.values())


def test_a_window_is_every_layers_as_in_transformers() -> None:
    assert arguments(use_sliding_window=True, sliding_window=7, max_window_layers=2).windows == (7,) * 4
    assert arguments(use_sliding_window=False, sliding_window=7, max_window_layers=28).windows == (None,) * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3"}, "'qwen3'; this decoder is for qwen3_moe"),
        ({"num_experts_per_tok": 9}, "found num_experts 8 and num_experts_per_tok 9"),
        ({"num_experts_per_tok": 0}, "at least one"),
        ({"num_experts": 0}, "model_type qwen3"),
        ({"mlp_only_layers": [0, 1, 2, 3]}, "found no layer with experts"),
        ({"decoder_sparse_step": 5}, "decoder_sparse_step 5"),
        ({"decoder_sparse_step": 0}, "found decoder_sparse_step 0"),
        ({"use_sliding_window": True, "sliding_window": None}, "use_sliding_window with sliding_window None"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "the second must divide the first"),
        ({"hidden_act": "sillu"}, "did you mean 'silu'"),
        ({"n_shared_experts": 1}, "n_shared_experts = 1"),
        ({"shared_expert_intermediate_size": 16}, "shared_expert_intermediate_size = 16"),
        ({"scoring_func": "sigmoid"}, "scoring_func"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments(**changes)


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("dense_layers", [[], [1]])
def test_the_parallel_plan_gives_every_parameter_one_role(
    dense_layers: list[int], critic: bool, family: Family
) -> None:
    config = load_hf_config({**tiny_qwen3_moe(), "mlp_only_layers": dense_layers})
    made = QwenMoEArguments.from_hf_config(config, critic=critic)
    with torch.device("meta"):
        module = family("qwen3_moe")[1](made)
    plan = moe_parallel_plan(made)
    plan.validate(module)
    assert plan.experts == ("layers.{layer}.moe",)
    assert (plan.role_of("layers.2.moe.router"), plan.role_of("layers.2.moe.experts")) == ("sequence", "expert")
    assert ("layers.{layer}.mlp" in plan.tensor_regions) == bool(dense_layers)


def test_stages_have_the_names_of_the_whole_model(family: Family) -> None:
    made = arguments()
    build = family("qwen3_moe")[1]
    with torch.device("meta"):
        stages = [build(made, Stage((0, 1), True, False)), build(made, Stage((2, 3), False, True))]
        whole = set(weight_shapes(build(made)))
    assert set().union(*(weight_shapes(stage) for stage in stages)) == whole


@pytest.mark.parametrize("dense_layers", [[], [0, 2]])
def test_a_stand_in_for_experts_gives_the_logits_of_transformers(make_pair: MakePair, dense_layers: list[int]) -> None:
    entries = {
        **tiny_qwen3_moe(),
        "mlp_only_layers": dense_layers,
        "use_sliding_window": True,
        "sliding_window": 5,
        "attention_bias": True,
    }
    pair = make_pair(entries)
    ids = torch.randint(0, 128, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    expected = pair.hf_outputs_one_by_one(ids, LENGTHS)
    scale = expected.abs().max()
    torch.testing.assert_close(pair.logits(ids, LENGTHS) / scale, expected / scale, rtol=0, atol=1e-5)


# Files.


def fuse(source: Path, target: Path) -> None:
    """The folder ``source`` with its experts as one tensor per layer, as transformers has them in memory."""
    tensors = load_file(source / "model.safetensors")
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in {name.partition(".mlp.experts")[0] for name in tensors if ".experts." in name}:
        part = {
            kind: [tensors[f"{layer}.mlp.experts.{number}.{kind}_proj.weight"] for number in range(8)]
            for kind in ("gate", "up", "down")
        }
        both = [torch.cat(pair) for pair in zip(part["gate"], part["up"], strict=True)]
        fused[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
        fused[f"{layer}.mlp.experts.down_proj"] = torch.stack(part["down"])
    target.mkdir()
    save_file(fused, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((source / "config.json").read_text())


@pytest.fixture
def saved(make_pair: MakePair, tmp_path: Path) -> Any:
    """A model of transformers, saved by it in ``theirs`` and in the fused form in ``fused``."""
    pair = make_pair(tiny_qwen3_moe())
    pair.hf.save_pretrained(tmp_path / "theirs")
    fuse(tmp_path / "theirs", tmp_path / "fused")
    return pair


def load(folder: Path, family: Family, **options: Any) -> tuple[nn.Module, Any, Any]:
    model, build = family("qwen3_moe")
    made = model.arguments.from_hf_config(load_hf_config(folder), critic=False)
    with torch.device("meta"):
        module = build(made)
    materialize_empty(module, "cpu")
    weights = model.weight_map(made).resolve(weight_shapes(module))
    return module, weights, load_hf_weights(module, weights, folder, **options)


@pytest.mark.parametrize("form", ["theirs", "fused"])
def test_both_forms_are_read_and_the_file_that_transformers_writes_is_written(
    form: str, saved: Any, family: Family, tmp_path: Path
) -> None:
    module, weights, _ = load(tmp_path / form, family)
    for name, weight in named_weights(saved.ours).items():
        assert torch.equal(named_weights(module)[name], weight), name
    save_hf_weights(named_weights(module), weights, tmp_path / "ours", saved.config, dtype=torch.float32)
    written = (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "theirs" / "model.safetensors").read_bytes()
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).logits, saved.hf(ids).logits)


@pytest.mark.parametrize("form", ["theirs", "fused"])
def test_only_the_experts_that_a_process_holds_are_read(form: str, saved: Any, family: Family, tmp_path: Path) -> None:
    def share(name: str, weight: Tensor) -> Iterable[tuple[Tensor, Box]]:
        """Experts 2 and 3 of 8, and of these the second half of the intermediate size; everything else whole."""
        box = Box.whole(tuple(weight.shape))
        if ".moe.experts." in name:
            cut = 2 if name.endswith("down_proj") else 1
            start, shape = [2, 0, 0], [2, *box.shape[1:]]
            start[cut] = shape[cut] = box.shape[cut] // 2
            box = Box(tuple(start), tuple(shape))
        return [(weight.detach()[box.slices], box)]

    module, _, report = load(tmp_path / form, family, local_boxes=share)
    _, _, whole = load(tmp_path / form, family)
    experts = sum(weight.nbytes for name, weight in named_weights(module).items() if ".moe.experts." in name)
    assert report.bytes_read == whole.bytes_read - experts + experts // 8
    for name, weight in named_weights(module).items():
        for part, box in share(name, weight):
            assert torch.equal(part, named_weights(saved.ours)[name][box.slices]), name


def test_a_checkpoint_of_neither_form_is_compared_with_the_one_it_is_nearest_to(
    saved: Any, family: Family, tmp_path: Path
) -> None:
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    (tmp_path / "fused" / "config.json").write_text(json.dumps({**config, "num_local_experts": 10}))
    with pytest.raises(WeightsError) as refused:
        load(tmp_path / "fused", family)
    lines = str(refused.value).splitlines()[1:-1]
    assert any(
        "mlp.experts.gate_up_proj (3: 1 to 3): found (8, 32, 32), expected (10, 32, 32)" in line for line in lines
    )
    assert not any("missing" in line or "unexpected" in line for line in lines), lines
