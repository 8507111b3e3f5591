"""Rotations with which sequences cannot share prefixes, from the entries of a config.json alone."""

from __future__ import annotations

from typing import Any

import pytest

from archon_engine.nn.rotary import ROPE_KINDS, fixed_frequencies_reach
from archon_engine.options.shared_prefixes import refuse_rotations, rotation_refusal


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("original", [{}, {"original_max_position_embeddings": 32}])
def test_rotations_are_refused_whose_frequencies_depend_on_the_length(kind: str, original: dict[str, Any]) -> None:
    parameters = {"rope_type": kind, "factor": 2.0, **original}
    reach = fixed_frequencies_reach(64, parameters)
    expected = None if reach is None else rotation_refusal(kind, reach, role="actor")
    assert refuse_rotations({"max_position_embeddings": 64, "rope_parameters": parameters}, role="actor") == expected


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope"}, "original_max_position_embeddings": 32},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}, "other": {"rope_type": "dynamic"}}},
        {"text_config": {"rope_parameters": {"rope_type": "dynamic"}}},
    ],
)
def test_rotations_are_found_where_configurations_have_them(entries: dict[str, Any]) -> None:
    refusal = refuse_rotations(entries, role="critic")
    assert refusal is not None
    assert refusal.startswith("critic.enable_tree_training: found true with rope_type ")


def test_a_model_without_rotation_is_not_refused() -> None:
    assert refuse_rotations({"rope_scaling": None, "max_position_embeddings": 64}, role="actor") is None
