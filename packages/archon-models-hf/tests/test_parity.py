"""Packed logits of many families against transformers' own, one sequence at a time there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.initialize import materialize_empty
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_models_hf.decoder import HfDecoder
from archon_models_hf.weight_map import weight_map

LENGTHS = (9, 1, 14, 5)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    "mistral": {"sliding_window": 5},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "olmo": {},
    "olmo2": {},
    "phi3": {"sliding_window": 5},
    "starcoder2": {"sliding_window": 5},
    "stablelm": {"use_qkv_bias": True},
    "gpt_neox": {},
    "gpt2": {},
    "cohere": {},
    "cohere2": {"sliding_window": 5},
    "nemotron": {},
    "glm4": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": 5},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4},
}


def logits(ours: HfDecoder, ids: torch.Tensor) -> torch.Tensor:
    packed = PackedSequences.from_lengths(LENGTHS, head=HeadInputs(outputs=("logits",)))
    return ours(ids, packed)["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_those_of_transformers_one_by_one(make_pair, family):
    theirs, ours = make_pair(family, **FAMILIES[family])
    ids = torch.randint(0, 128, (sum(LENGTHS),))
    right = torch.cat([theirs(sequence[None], use_cache=False).logits[0] for sequence in ids.split(LENGTHS)])
    found = logits(ours.train(), ids)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5 * float(right.detach().abs().max()))


@pytest.mark.parametrize("family", ["mixtral", "starcoder2", "gpt_neox"])
def test_files_are_those_that_transformers_writes_and_load_to_the_last_bit(make_pair, tmp_path, family):
    theirs, ours = make_pair(family, **FAMILIES[family])
    weights = weight_map(ours.arguments).resolve(weight_shapes(ours))
    save_hf_weights(named_weights(ours), weights, tmp_path / "ours", theirs.config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    found, right = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in right)
    with torch.device("meta"):
        again = HfDecoder(ours.arguments)
    materialize_empty(again, "cpu")
    load_hf_weights(again, weights, tmp_path / "theirs")
    ids = torch.randint(0, 128, (sum(LENGTHS),))
    torch.testing.assert_close(logits(again, ids), logits(ours, ids), rtol=0, atol=0)


def test_constants_are_written_anew_in_their_own_type_after_a_build_without_storage(make_pair):
    _, ours = make_pair("gemma3_text", **FAMILIES["gemma3_text"])
    with torch.device("meta"):
        again = HfDecoder(ours.arguments).to(torch.bfloat16)
    materialize_empty(again, "cpu")
    built, filled = dict(ours.named_buffers()), dict(again.named_buffers())
    assert built.keys() == filled.keys()
    assert any(name.endswith("inv_freq") for name in built)
    for name, buffer in built.items():
        assert filled[name].dtype == buffer.dtype, name
        assert torch.equal(filled[name], buffer), name
