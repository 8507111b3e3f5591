"""What is found of a model before it has weights, and what is refused then."""

from __future__ import annotations

import pytest
import torch

from archon_core.errors import ModelError
from archon_engine.models.initialize import initial_value
from archon_engine.models.parameter_names import owners
from archon_models_hf.decoder import HfDecoder
from archon_models_hf.parallel_plan import parallel_plan

EXPERTS = {"num_local_experts": 4}


def test_windows_scales_and_caps_are_those_that_layers_ask_for(arguments_of):
    made = arguments_of("gemma2", head_dim=8, query_pre_attn_scalar=4, sliding_window=5)
    first, second = made.facts.attention
    assert (first.settings.window, second.settings.window) == (5, None)
    assert (first.settings.scale, first.settings.softcap, made.facts.form.softcap) == (0.5, 50.0, 30.0)
    assert (first.n_heads, first.n_kv_heads, first.head_dim) == (4, 2, 8)
    assert made.facts.tied


def test_what_becomes_of_logits_is_seen(arguments_of):
    assert arguments_of("granite", logits_scaling=8.0).facts.form.scale == 0.125
    assert arguments_of("cohere", logit_scale=0.0625).facts.form.scale == 0.0625


@pytest.mark.parametrize(
    ("model_type", "entries", "message"),
    [
        ("gpt_oss", EXPERTS, r"found the argument s_aux"),
        ("phi", {}, r"found a bias in the head lm_head"),
        ("falcon", {}, r"does not go through transformers' attention interface"),
        ("mamba", {}, r"found convolutions over tokens"),
        ("qwen3_next", {}, r"found convolutions over tokens .linear_attn.conv1d. in layer 0"),
        ("opt", {}, r"runs models of a token embedding, one list of layers"),
        ("deepseek_v3", {}, r"values of size 128 for queries of size 192"),
        ("diffllama", {}, r"computed more than once"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, r"rope_type 'dynamic'"),
        ("llama", {"is_causal": False}, r"is_causal false"),
        ("t5", {}, r"found no class for causal language modelling"),
    ],
)
def test_what_packed_sequences_cannot_be_run_through_is_refused_by_name(arguments_of, model_type, entries, message):
    with pytest.raises(ModelError, match=message):
        arguments_of(model_type, **entries)


@pytest.mark.parametrize(("model_type", "entries"), [("gpt_oss", EXPERTS), ("falcon", {}), ("opt", {}), ("mamba", {})])
def test_refused_models_get_the_advice_for_other_architectures(arguments_of, model_type, entries):
    with pytest.raises(
        ModelError, match=r"archon new model NAME \(.*\) creates it as a small Llama.*PORTING"
    ) as raised:
        arguments_of(model_type, **entries)
    assert "--from-hf" not in str(raised.value)


def test_a_critic_without_a_class_of_transformers_is_refused(arguments_of):
    with pytest.raises(ModelError, match="sequence classification, which critics are saved as"):
        arguments_of("granite", critic=True)


@pytest.mark.parametrize(
    ("model_type", "entries", "letter", "message"),
    [
        ("mixtral", EXPERTS, "t", "stacks of experts"),
        ("gpt2", {}, "t", "declares no tensor-parallel plan"),
        ("gpt2", {}, "p", "declares no pipeline plan"),
        ("granite", {"embedding_multiplier": 3.0}, "p", "computes with hidden states outside of its layers"),
    ],
)
def test_an_axis_that_a_model_cannot_be_cut_along_has_its_reason_in_the_plan(
    arguments_of, model_type, entries, letter, message
):
    assert message in parallel_plan(arguments_of(model_type, **entries)).refusals[letter]


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "phi3", "gpt_neox", "gemma2", "nemotron"])
def test_the_parallel_plan_gives_every_parameter_one_role(arguments_of, model_type):
    made = arguments_of(model_type)
    with torch.device("meta"):
        module = HfDecoder(made)
    plan = parallel_plan(made)
    plan.validate(module)
    assert "t" not in plan.refusals
    assert plan.role_of("embed") == plan.role_of("head") == "vocabulary"
    assert plan.role_of("norm") == "sequence"


def test_norms_over_whole_projections_have_all_of_them(arguments_of):
    made = arguments_of("olmo2")
    assert made.facts.tensor.gathering == {f"layers.{{layer}}.self_attn.{name}_proj" for name in "qkv"}
    assert made.facts.tensor.splitting == {"layers.{layer}.self_attn.o_proj"}
    assert parallel_plan(made).role_of("layers.0.self_attn.q_norm") == "head_norm"


@pytest.mark.parametrize(("model_type", "start"), [("llama", "ones"), ("gemma", "zeros")])
def test_norms_start_as_transformers_starts_them(arguments_of, model_type, start):
    module = HfDecoder(arguments_of(model_type))
    starts = {name: initial_value(owner, attribute, p) for name, owner, attribute, p in owners(module)}
    assert starts["norm.weight"] == starts["layers.0.input_layernorm.weight"] == start
    assert starts["layers.0.self_attn.q_proj.weight"] == "normal"


def test_nothing_is_random_in_training(arguments_of):
    made = arguments_of("gpt2", attn_pdrop=0.1, resid_pdrop=0.2)
    assert made.attention_dropout == 0.2
    assert not any(part.training for part in HfDecoder(made).train().modules())


def test_learned_positions_limit_sequences(arguments_of):
    assert HfDecoder(arguments_of("gpt2")).max_positions == 512
    assert HfDecoder(arguments_of("llama")).max_positions is None


def test_losses_of_routers_that_are_asked_for_and_not_applied_are_decisions(arguments_of):
    [asked] = arguments_of("mixtral", **EXPERTS, output_router_logits=True).decisions
    assert (asked.option, asked.requested, asked.effective) == ("output_router_logits", "true", "false")
    [default] = arguments_of("mixtral", **EXPERTS).decisions
    assert (default.option, default.requested) == ("router_aux_loss_coef", "not set")
    assert arguments_of("llama").decisions == ()
