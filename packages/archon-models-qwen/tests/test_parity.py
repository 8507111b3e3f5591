"""Numbers equal transformers' for configurations that the test draws: logits, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.models.weight_conversion import assemble_hf, copy_from
from archon_engine.nn.rotary import ROPE_KINDS
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.tiny_config import tiny_qwen2, tiny_qwen3

MakePair = Callable[..., Any]

ORIGINAL_LENGTH = 12
"""Sequences of up to 20 tokens go beyond it, where rotations of kind dynamic and longrope change."""


@st.composite
def rope_parameters(draw: st.DrawFn, kind: str, head_dim: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 10_000.0, 1e6]))}
    if kind != "default":
        parameters["factor"] = draw(st.sampled_from([1.5, 4.0]))
    if kind in ("yarn", "longrope", "llama3"):
        parameters["original_max_position_embeddings"] = ORIGINAL_LENGTH
    if kind == "longrope":
        factors = st.lists(st.floats(1.0, 8.0), min_size=head_dim // 2, max_size=head_dim // 2)
        parameters |= {"short_factor": draw(factors), "long_factor": draw(factors)}
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "yarn":
        parameters |= draw(st.sampled_from([{}, {"attention_factor": 1.2}, {"mscale": 1.0, "mscale_all_dim": 0.8}]))
    if kind == "proportional":
        parameters["partial_rotary_factor"] = draw(st.sampled_from([0.5, 1.0]))
    return parameters


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from(["qwen2", "qwen3"]))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 1), (2, 2), (3, 1), (3, 3)]))
    heads, head_dim = kv_heads * group, draw(st.sampled_from([4, 6, 8, 10]))
    layers = draw(st.integers(1, 3))
    entries: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw(st.integers(2, 40)),
        "hidden_size": draw(st.integers(3, 24)),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "relu"])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if family == "qwen3":
        entries |= {"head_dim": head_dim, "attention_bias": draw(st.booleans())}
    elif draw(st.booleans()):
        entries["head_dim"] = head_dim
    else:
        entries["hidden_size"] = heads * head_dim + draw(st.integers(0, heads - 1))
    kind = draw(st.sampled_from(ROPE_KINDS))
    entries["rope_parameters"] = draw(rope_parameters(kind, head_dim))
    entries["max_position_embeddings"] = ORIGINAL_LENGTH if kind == "dynamic" else 4 * ORIGINAL_LENGTH
    window = draw(st.sampled_from([None, 1, 3, 8, 64]))
    if window is not None:
        entries |= {"use_sliding_window": True, "sliding_window": window}
        if draw(st.booleans()):
            entries["max_window_layers"] = draw(st.integers(0, layers))
        else:
            types = st.sampled_from(["full_attention", "sliding_attention"])
            entries["layer_types"] = draw(st.lists(types, min_size=layers, max_size=layers))
    return entries


lengths_lists = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)


def random_ids(entries: dict[str, Any], lengths: tuple[int, ...]) -> Tensor:
    return torch.randint(0, entries["vocab_size"], (sum(lengths),), generator=torch.Generator().manual_seed(3))


@given(entries=configurations(), lengths=lengths_lists, attention=st.sampled_from(["eager", "sdpa"]))
@settings(max_examples=60, deadline=None)
def test_packed_logits_and_gradients_equal_those_of_transformers_one_sequence_at_a_time(
    make_pair: MakePair, entries: dict[str, Any], lengths: tuple[int, ...], attention: str
) -> None:
    torch.manual_seed(0)
    pair = make_pair(entries, attention=attention)
    ids = random_ids(entries, lengths)
    logits, expected = pair.logits(ids, lengths), pair.hf_outputs_one_by_one(ids, lengths)
    scale = expected.abs().max().clamp(min=1.0)
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-5)

    upstream = torch.randn_like(expected)
    (logits * upstream).sum().backward()
    (expected * upstream).sum().backward()
    ours = {name: parameter.grad for name, parameter in pair.ours.named_parameters()}
    for name, parameter in pair.hf.named_parameters():
        gradient = assemble_hf(name, pair.weights, copy_from(ours), parameter.dtype)
        largest = parameter.grad.abs().max().clamp(min=1.0)
        # Gradients are sums over tokens and heads; each rounds in another order.
        torch.testing.assert_close(gradient / largest, parameter.grad / largest, rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_every_rope_kind_holds_on_a_mixed_model(make_pair: MakePair, family: str, kind: str) -> None:
    factors = [1.0 + 0.5 * i for i in range(4)]
    parameters = {
        "default": {},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 12},
        "longrope": {
            "factor": 4.0,
            "short_factor": factors,
            "long_factor": [2 * f for f in factors],
            "original_max_position_embeddings": 12,
        },
        "llama3": {
            "factor": 4.0,
            "original_max_position_embeddings": 12,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "proportional": {"partial_rotary_factor": 0.5},
    }[kind]
    entries = {
        **(tiny_qwen2() if family == "qwen2" else tiny_qwen3()),
        "head_dim": 8,
        "max_position_embeddings": 12 if kind == "dynamic" else 48,
        "rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **parameters},
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    }
    pair = make_pair(entries)
    lengths = (7, 20, 12, 13, 1)
    ids = random_ids(entries, lengths)
    expected = pair.hf_outputs_one_by_one(ids, lengths)
    scale = expected.abs().max()
    torch.testing.assert_close(pair.logits(ids, lengths) / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_float64_logits_equal_a_transformers_model_whose_fp32_roundings_are_lifted(
    make_pair: MakePair, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = tiny_qwen2() if family == "qwen2" else tiny_qwen3()
    pair = make_pair({**entries, "num_key_value_heads": 2}, attention="sdpa", dtype=torch.float64)
    norm, rotary = type(pair.hf.model.norm), type(pair.hf.model.rotary_emb)

    def norm_in_float64(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary_in_float64(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    monkeypatch.setattr(norm, "forward", norm_in_float64)
    monkeypatch.setattr(rotary, "forward", rotary_in_float64)
    lengths = (9, 1, 30, 8)
    ids = random_ids(entries, lengths)
    expected = pair.hf_outputs_one_by_one(ids, lengths)
    scale = expected.abs().max()
    torch.testing.assert_close(pair.logits(ids, lengths) / scale, expected / scale, rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_critics_values_are_the_scores_of_transformers_for_every_prefix(make_pair: MakePair, family: str) -> None:
    entries = tiny_qwen2() if family == "qwen2" else tiny_qwen3()
    pair = make_pair({**entries, "tie_word_embeddings": True}, critic=True)
    ids = random_ids(entries, (6,))
    packed = PackedSequences.from_lengths((6,), head=HeadInputs(outputs=("values",)))
    values = pair.ours(ids, packed)["values"]
    scores = torch.stack([pair.hf(ids[None, : n + 1]).logits[0, 0] for n in range(6)])
    torch.testing.assert_close(values, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_pipeline_stages_one_after_the_other_are_the_whole_model(make_pair: MakePair, tied: bool) -> None:
    pair = make_pair({**tiny_qwen3(), "tie_word_embeddings": tied})
    arguments, whole = pair.ours.arguments, pair.ours.state_dict()
    stages = [
        QwenDecoder(arguments, Stage((0, 1), has_embed=True, has_head=False)),
        QwenDecoder(arguments, Stage((2,), has_embed=False, has_head=False)),
        QwenDecoder(arguments, Stage((3,), has_embed=False, has_head=True)),
    ]
    assert [sorted(stage.layers) for stage in stages] == [["0", "1"], ["2"], ["3"]]
    assert (stages[0].norm, stages[0].head, stages[1].embed, stages[2].embed) == (None,) * 4
    names = [set(stage.state_dict()) for stage in stages]
    assert set.union(*names) == set(whole), "names count layers over the whole model"
    lengths = (5, 3)
    x = random_ids(tiny_qwen3(), lengths)
    expected = pair.logits(x, lengths)
    packed = PackedSequences.from_lengths(lengths, head=HeadInputs(outputs=("logits",)))
    for stage in stages:
        stage.load_state_dict({name: whole[name] for name in stage.state_dict()})
        x = stage(x, packed)
    assert torch.equal(x["logits"], expected)
