"""Families that only transformers implements, compared with one process on many layouts.

About two minutes on two cores: run by ``hatch run test-wide``, not with the other tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from archon_testing.cases import Case
from archon_testing.oracle import Oracle

pytestmark = pytest.mark.wide

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
DENSE = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "olmo2": {},
    "phi3": {"sliding_window": 8},
    "starcoder2": {"sliding_window": 8},
    "gpt_neox": {},
    "cohere": {"tie_word_embeddings": True},
}
"""Windows that bind, biases, ties, means in norms, scaled and capped logits, fused projections, parallel residuals."""

MIXTURES = {
    "mixtral": {"num_local_experts": 4, "sliding_window": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
STAGED = ("p2", "p2-ZBV", "d2p2-1F1B")
LAYOUTS = ("d2", "t2", "c2")
CROSSED = [(family, layout) for family in ("mistral", "gemma2") for layout in ("d4", "d2c2")]
"""Families with windows, the second one also with capped logits, on four ranks."""


@pytest.fixture(scope="module")
def oracle():
    with tempfile.TemporaryDirectory() as folder:
        yield Oracle(Path(folder), time_limit=300)


def check(oracle, entries, text):
    dims, _, schedule = text.partition("-")
    # A layer for each of the four stages of ZBV.
    deep = {"num_hidden_layers": 4} if schedule else {}
    fields = {"layout": f"archon:{dims}", "schedule": schedule or None, "dtype": "float32", "model": "hf"}
    cases = [Case({**SIZES, **entries, **deep}, n_mbs=2, **fields)]
    cases += [Case({**SIZES, **entries, **deep}, n_mbs=2, check="resume", **fields)] if text == "d2" else []
    for verdict in oracle.verify(cases):
        assert verdict.passed, verdict.refusal or verdict.comparison


@pytest.mark.parametrize(("family", "layout"), [(family, layout) for family in DENSE for layout in LAYOUTS] + CROSSED)
def test_a_dense_family_gives_the_numbers_of_one_process(oracle, family, layout):
    check(oracle, {"model_type": family, **DENSE[family]}, layout)


@pytest.mark.parametrize("layout", ["d2", "c2"])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_family_with_experts_gives_the_numbers_of_one_process(oracle, family, layout):
    check(oracle, {"model_type": family, **MIXTURES[family]}, layout)


@pytest.mark.parametrize(
    ("family", "layout"),
    [(family, layout) for family in ("llama", "gemma2") for layout in STAGED]
    + [(family, "p2") for family in [*DENSE, *MIXTURES] if family not in ("llama", "gemma2", "granite", "olmoe")],
)
def test_a_family_that_declares_a_pipeline_plan_gives_the_numbers_of_one_process(oracle, family, layout):
    check(oracle, {"model_type": family, **{**DENSE, **MIXTURES}[family]}, layout)
