"""The longest sequence of a model, from its configuration; expected values are computed by hand."""

from __future__ import annotations

import pytest

from archon_engine.models.context_length import ContextLength, context_length
from archon_engine.models.hf_config import load_hf_config


def rope(**parameters) -> dict:
    return {
        "model_type": "qwen3",
        "head_dim": 16,
        "max_position_embeddings": 1000,
        "rope_parameters": {"rope_theta": 10000.0, **parameters},
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (rope(rope_type="default"), ContextLength(1000, 1000)),
        (rope(rope_type="linear", factor=4.0), ContextLength(4000, 4000)),
        (rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=500), ContextLength(2000, 2000)),
        (rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=100), ContextLength(1000, 1000)),
        (rope(rope_type="dynamic", factor=4.0), ContextLength(1000, 1000)),
        (
            rope(
                rope_type="longrope",
                factor=4.0,
                original_max_position_embeddings=250,
                short_factor=[1.0] * 8,
                long_factor=[2.0] * 8,
            ),
            ContextLength(1000, 250),
        ),
        ({"model_type": "gpt2", "n_positions": 512}, ContextLength(512, 512)),
        ({"model_type": "bloom"}, ContextLength(None, None)),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 300}}, ContextLength(300, 300)),
    ],
    ids=["default", "linear", "yarn", "short yarn", "dynamic", "longrope", "learned", "none", "nested"],
)
def test_the_longest_sequence_follows_from_the_configuration(entries, expected):
    assert context_length(load_hf_config(entries)) == expected
