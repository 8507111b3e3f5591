"""The lengths that archon-rl allows before the first step are those that archon-rollout serves."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import ArchonError
from archon_engine.models.context_length import context_length
from archon_engine.models.hf_config import load_hf_config
from archon_rl.trainer.sequence_lengths import rollout_limits
from archon_rollout.model_limits import ModelLimits
from archon_rollout.requests import check_requests

MODELS = [
    {"model_type": "qwen3", "max_position_embeddings": 12, "rope_parameters": {"rope_theta": 1e4, **kind}}
    for kind in (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 1.5},
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "original_max_position_embeddings": 8,
            "short_factor": [1.0],
            "long_factor": [1.0],
        },
    )
]


@given(st.sampled_from(MODELS), st.integers(1, 25), st.integers(1, 25), st.none() | st.integers(1, 25))
def test_a_prompt_is_allowed_exactly_when_the_local_engine_serves_it(entries, prompt, n_new, max_tokens):
    options = GenerationConfig(max_new_tokens=n_new, max_tokens=max_tokens)
    actor = SimpleNamespace(model_config=entries, path=None, mb_spec=SimpleNamespace(max_tokens_per_mb=None))
    allowed = all(prompt <= limit.longest for limit in rollout_limits(options, actor))
    reach = context_length(load_hf_config(entries))
    try:
        check_requests(
            [GenerationRequest((1,) * prompt, options, (0,))], ModelLimits(50, reach.positions, reach.generation)
        )
        served = True
    except ArchonError:
        served = False
    assert allowed == served
