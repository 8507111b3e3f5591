"""Rotations against transformers' own module, one sequence at a time, for every kind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ModelError
from archon_engine.nn.rotary import ROPE_KINDS, LayerRotaryEmbedding, RopeArguments, RotaryEmbedding

HEAD_DIM = 8
PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0, "truncate": False},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "proportional": {"factor": 2.0, "partial_rotary_factor": 0.5},
}
LENGTHS = (3, 40, 16, 17, 1, 64)
"""Below, at and above 16, where the length-dependent kinds change."""


def config(kind: str, **changes: Any) -> Qwen3Config:
    parameters = {"rope_type": kind, "rope_theta": 1000.0, **PARAMETERS[kind], **changes}
    limit = 16 if kind == "dynamic" else 64
    return Qwen3Config(head_dim=HEAD_DIM, max_position_embeddings=limit, rope_parameters=parameters)


def rotary(kind: str, **changes: Any) -> RotaryEmbedding:
    return RotaryEmbedding(RopeArguments.from_hf_config(config(kind, **changes), HEAD_DIM))


def test_every_kind_is_tested() -> None:
    assert set(PARAMETERS) == set(ROPE_KINDS)


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_packed_sequences_are_rotated_as_transformers_rotates_each_alone(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(sum(LENGTHS), 2, HEAD_DIM)
    rotated = rotary(kind)(PackedSequences.from_lengths(LENGTHS), torch.float32).apply(x)
    for ours, alone in zip(rotated.split(LENGTHS), x.split(LENGTHS), strict=True):
        # A new module each time: transformers' remembers the longest sequence that it has seen.
        cos, sin = Qwen3RotaryEmbedding(config(kind))(alone, torch.arange(len(alone))[None])
        expected, _ = apply_rotary_pos_emb(alone[None], alone[None], cos, sin, unsqueeze_dim=2)
        torch.testing.assert_close(ours, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_a_sequence_is_rotated_the_same_whatever_is_packed_beside_it(kind: str) -> None:
    x = torch.randn(64, 1, HEAD_DIM, dtype=torch.float64)
    module = rotary(kind)
    for length in (9, 33):
        alone = module(PackedSequences.from_lengths((length,)), torch.float64).apply(x[:length])
        packed = module(PackedSequences.from_lengths((length, 64 - length)), torch.float64).apply(x)
        assert torch.equal(packed[:length], alone)


def test_angles_are_float64_when_activations_are() -> None:
    packed = PackedSequences.from_lengths((50_000,))
    rotation = rotary("default")(packed, torch.float64)
    frequency = rotary("default").arguments.frequencies()[0][0].double()
    expected = torch.cos(torch.arange(50_000, dtype=torch.float64) * frequency)
    torch.testing.assert_close(rotation.cos[:, 0, 0], expected, rtol=0, atol=1e-14)


def test_low_precision_activations_get_angles_computed_in_fp32() -> None:
    packed = PackedSequences.from_lengths((3000,))
    rotation = rotary("default")(packed, torch.bfloat16)
    assert rotation.cos.dtype == torch.bfloat16
    assert torch.equal(rotation.cos, rotary("default")(packed, torch.float32).cos.bfloat16())


def test_building_on_the_meta_device_and_casting_keep_the_frequencies() -> None:
    with torch.device("meta"):
        module = rotary("yarn")
    module = module.to_empty(device="cpu").bfloat16()
    packed = PackedSequences.from_lengths((20,))
    assert torch.equal(module(packed, torch.float32).sin, rotary("yarn")(packed, torch.float32).sin)


class _Cache:
    attend = None


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_cached_sequences_are_refused_once_their_rotation_would_depend_on_the_final_length(kind: str) -> None:
    module = rotary(kind)
    assert module.length_dependent_above == 16
    at_limit = replace(PackedSequences.from_lengths((16, 5)), cache=_Cache())
    uncached = replace(at_limit, cache=None)
    assert torch.equal(module(at_limit, torch.float32).cos, module(uncached, torch.float32).cos)
    above = replace(PackedSequences.from_lengths((1,)), positions=torch.tensor([16]), cache=_Cache())
    with pytest.raises(ModelError, match="17 tokens; above 16"):
        module(above, torch.float32)


@pytest.mark.parametrize("kind", sorted(set(ROPE_KINDS) - {"dynamic", "longrope"}))
def test_other_kinds_have_no_limit(kind: str) -> None:
    assert rotary(kind).length_dependent_above is None


@pytest.mark.parametrize(
    ("kind", "changes", "head_dim", "message"),
    [
        ("default", {"rope_type": "axial"}, 8, "rope_type 'axial'"),
        ("default", {"rope_type": "linaer"}, 8, "did you mean 'linear'"),
        ("linear", {"partial_rotary_factor": 0.5}, 8, "partial_rotary_factor 0.5"),
        ("default", {}, 7, "head_dim 7"),
        ("dynamic", {}, 2, "at least 4"),
    ],
)
def test_what_cannot_be_rotated_is_refused(kind: str, changes: dict, head_dim: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        RopeArguments.from_hf_config(config(kind, **changes), head_dim)


def test_frequencies_per_layer_type_are_refused() -> None:
    nested = config("default")
    nested.rope_parameters = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(ModelError, match="one set per layer type"):
        RopeArguments.from_hf_config(nested, HEAD_DIM)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("default", {"rope_theta": "x"}, "TypeError"),
        ("default", {"rope_theta": 0.0}, "not finite"),
        ("yarn", {"factor": "x"}, "TypeError"),
    ],
)
def test_values_that_give_no_frequencies_are_refused(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"rope_parameters: found .*{reason}.*; correct the value"):
        RopeArguments.from_hf_config(config(kind, **changes), HEAD_DIM)


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs of ``x`` [T, heads, pairs, 2] rotated as complex numbers by ``angles`` [T, pairs]."""
    return torch.view_as_real(torch.view_as_complex(x) * torch.polar(torch.ones_like(angles), angles)[:, None])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_parts_of_heads_and_neighbours_are_rotated_as_complex_numbers(interleaved: bool, factor: float) -> None:
    parameters = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": factor}
    rope = RopeArguments(8, 64, parameters, interleaved)
    packed = PackedSequences.from_lengths((3, 4))
    x = torch.randn(7, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = rope.rotated_dim
    assert n == int(8 * factor)
    angles = packed.positions.double()[:, None] * rope.frequencies()[0].double()
    part = x[..., :n]
    if interleaved:
        expected = _turned(part.unflatten(-1, (-1, 2)).contiguous(), angles).flatten(-2)
    else:
        pairs = torch.stack(part.chunk(2, -1), -1)
        expected = torch.cat(_turned(pairs, angles).unbind(-1), -1)
    found = RotaryEmbedding(rope)(packed, torch.float64).apply(x)
    torch.testing.assert_close(found, torch.cat((expected, x[..., n:]), -1), rtol=1e-12, atol=1e-12)


def test_layers_rotate_by_their_own_parameters_or_not_at_all() -> None:
    near, far = (RopeArguments(4, 64, {"rope_type": "default", "rope_theta": base}) for base in (100.0, 1e6))
    packed = PackedSequences.from_lengths((5,))
    module = LayerRotaryEmbedding([near, far, None, near])
    assert len(module.embeddings) == 2
    x = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0))
    first, second, third, last = (rotation.apply(x) for rotation in module(packed, x.dtype))
    assert torch.equal(first, RotaryEmbedding(near)(packed, x.dtype).apply(x))
    assert torch.equal(second, RotaryEmbedding(far)(packed, x.dtype).apply(x))
    assert torch.equal(third, x)
    assert torch.equal(last, first)


def test_parameters_of_a_layer_type_are_read_by_its_name() -> None:
    of_types = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = SimpleNamespace(model_type="x", max_position_embeddings=64, rope_parameters=of_types)
    for kind, parameters in of_types.items():
        assert RopeArguments.from_hf_config(config, 8, layer_type=kind).parameters == parameters
    with pytest.raises(ModelError, match="found one set per layer type"):
        RopeArguments.from_hf_config(config, 8)


def test_a_part_of_the_head_is_rotated_only_by_architectures_that_can() -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = SimpleNamespace(model_type="x", max_position_embeddings=64, rope_parameters=parameters)
    assert RopeArguments.from_hf_config(config, 8, partial=True).rotated_dim == 4
    with pytest.raises(ModelError, match="this architecture rotates the whole head"):
        RopeArguments.from_hf_config(config, 8)
    with pytest.raises(ModelError, match="rotates 3 elements"):
        RopeArguments.from_hf_config(config, 6, partial=True)
