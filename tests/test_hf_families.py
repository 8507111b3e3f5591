"""Families that only transformers implements, compared with one process on many layouts.

Minutes on two cores: run by ``hatch run test-wide``, not with the other tests.
"""

from __future__ import annotations

from dataclasses import replace
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
FAMILIES = {**DENSE, **MIXTURES}
LAYOUTS = {
    # Data ranks cut no computation: a dense family, a tied one, one with fused projections, and stacks of experts.
    "d2": ("llama", "gemma", "phi3", *MIXTURES),
    "t2": tuple(DENSE),
    "c2": tuple(FAMILIES),
    "d2c2": ("mistral", "gemma2"),
    "p2": tuple(family for family in FAMILIES if family not in ("granite", "olmoe")),  # which declare no pipeline plan
    "p2-ZBV": ("llama", "gemma2"),
    "d2p2-1F1B": ("llama", "gemma2"),
}
"""Layout -> families, all in one world."""


def cases_of(family: str, layout: str) -> list[Case]:
    dims, _, schedule = layout.partition("-")
    # A layer for each of the four stages of ZBV.
    deep = {"num_hidden_layers": 4} if schedule else {}
    entries = {**SIZES, "model_type": family, **FAMILIES[family], **deep}
    case = Case(entries, n_mbs=2, layout=f"archon:{dims}", schedule=schedule or None, dtype="float32", model="hf")
    return [case, replace(case, check="resume")] if layout == "d2" else [case]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_families_have_the_numbers_of_one_process(tmp_path: Path, layout: str) -> None:
    cases = [case for family in LAYOUTS[layout] for case in cases_of(family, layout)]
    verdicts = Oracle(tmp_path, time_limit=300).verify(cases)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    assert {v.case.model_config["model_type"]: v.refusal or v.comparison for v in failed} == {}
