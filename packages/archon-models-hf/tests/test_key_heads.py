"""Which projections tensor ranks can exchange the outputs of, read from transformers' plans."""

from __future__ import annotations

import pytest
import torch

from archon_core import parse_layout
from archon_core.errors import LayoutError
from archon_core.layout.model_sizes import check_sizes
from archon_engine.parallel.plan_checks import sharded_extents
from archon_models_hf.decoder import HfDecoder
from archon_models_hf.parallel_plan import parallel_plan

EXCHANGED = ("layers.{layer}.self_attn.k_proj", "layers.{layer}.self_attn.v_proj")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3", "mistral"])
def test_projections_of_whole_heads_can_be_exchanged(arguments_of, model_type):
    assert parallel_plan(arguments_of(model_type)).key_value == EXCHANGED


@pytest.mark.parametrize("model_type", ["olmo2", "phi3"])
def test_where_a_plan_gathers_or_fuses_them_key_heads_must_be_dealt_evenly(arguments_of, model_type):
    made = arguments_of(model_type, num_key_value_heads=1)
    plan = parallel_plan(made)
    assert plan.key_value == ()
    with torch.device("meta"):
        extents = sharded_extents(HfDecoder(made), plan)
    with pytest.raises(LayoutError, match=r"found t2; it must divide the model's key and value heads \(1\)"):
        check_sizes(extents, parse_layout("archon:t2"), option="actor.backend")
