"""From options to compositions, and what presets refuse."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig
from archon_core.errors import ConfigError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl import config as options_module
from archon_rl import plugin
from archon_rl.advantages import ConstantLambda, LengthAdaptiveLambda, Normalisation, RelativePositionLambda
from archon_rl.algorithm import Algorithm, DropTruncated, MixedGroups
from archon_rl.config import NormConfig, PolicyOptions, RejectionSamplingConfig
from archon_rl.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from archon_rl.losses.behaviour import BehaviourWeight, RejectionSampling
from archon_rl.losses.kl import KLTerm
from archon_rl.presets import grpo, sft


@dataclass
class Actor(ArchonEngineConfig, PolicyOptions):
    """``actor`` as the merged configuration has it."""


@dataclass
class Configuration:
    actor: Actor
    gconfig: GenerationConfig = field(default_factory=lambda: GenerationConfig(n_samples=4, max_new_tokens=16))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    workflow: str = "rlvr"
    dynamic_bs: bool = False
    ref: ArchonEngineConfig | None = None
    teacher: ArchonEngineConfig | None = None
    algorithm: str = "grpo"


def compose(
    *, ref: bool = False, gconfig: dict | None = None, dynamic_bs: bool = False, **options
) -> tuple[Algorithm, dict[str, Decision]]:
    decisions: list[Decision] = []
    base = Configuration(Actor(**options), ref=ArchonEngineConfig() if ref else None, dynamic_bs=dynamic_bs)
    config = replace(base, gconfig=replace(base.gconfig, **(gconfig or {})))
    algorithm = grpo(config, decisions)
    return algorithm, {decision.option: decision for decision in decisions}


def test_grpo_normalises_rewards_by_their_group_unless_a_norm_is_given():
    algorithm, decisions = compose(kl_ctl=0.0)
    assert algorithm.advantages.reward_norm == Normalisation("group", "group")
    assert decisions["actor.reward_norm"].effective == "mean and deviation of the group"
    given_norm, decisions = compose(kl_ctl=0.0, adv_norm=NormConfig(mean_level="group", std_level=None))
    assert given_norm.advantages.reward_norm is None
    assert given_norm.advantages.adv_norm == Normalisation("group", None)
    assert not decisions


def test_without_a_reference_the_default_penalty_is_off_and_recorded():
    algorithm, decisions = compose()
    assert algorithm.advantages.kl_ctl == 0.0
    assert "ref_logprobs" not in algorithm.fields
    assert decisions["actor.kl_ctl"].requested == "0.1"
    with_ref, decisions = compose(ref=True)
    assert with_ref.advantages.kl_ctl == 0.1
    assert "ref_logprobs" in with_ref.fields
    assert "actor.kl_ctl" not in decisions


def test_a_kl_term_without_a_reference_is_an_error():
    with pytest.raises(
        ConfigError, match=r"kl_loss_coef: found 0\.1, which needs a reference model, and no 'ref' section"
    ):
        compose(kl_loss_coef=0.1)
    algorithm, _ = compose(kl_loss_coef=0.1, kl_ctl=0.0, ref=True, kl_loss_estimator="k2")
    assert algorithm.regularisers[-1] == KLTerm(0.1, "k2")
    assert "ref_logprobs" in algorithm.fields


@pytest.mark.parametrize(
    ("name", "aggregation"), [("token", TokenMean()), ("sequence", SequenceMean()), ("constant", ConstantLength(16))]
)
def test_aggregations_are_chosen_by_name(name, aggregation):
    assert compose(loss_aggregation=name)[0].aggregation == aggregation


def test_the_decoupled_loss_recomputes_and_the_plain_one_replaces():
    bounds = RejectionSamplingConfig(upper=2.0, level="sequence")
    decoupled, _ = compose(use_decoupled_loss=True, recompute_logprob=True, rejection_sampling=bounds)
    assert decoupled.loss.behaviour == BehaviourWeight(RejectionSampling(upper=2.0, level="sequence"))
    assert "prox_logprobs" in decoupled.fields
    assert not decoupled.replace_logprobs
    plain, _ = compose(recompute_logprob=True)
    assert plain.replace_logprobs
    assert "prox_logprobs" not in plain.fields


def test_the_policy_is_trained_at_the_temperature_it_is_sampled_at():
    algorithm, decisions = compose(gconfig={"temperature": 0.7})
    assert algorithm.temperature == algorithm.objective.request.temperature == 0.7
    assert decisions["actor.temperature"].effective == "0.7"
    assert "actor.temperature" not in compose(temperature=0.7, gconfig={"temperature": 0.7})[1]


def test_strict_turns_a_change_of_what_was_asked_into_an_error():
    strict = ArchonOptions(strict=True)
    with pytest.raises(
        ConfigError, match=r"strict: found true, and settings that .*\n  actor\.kl_ctl: found 0\.1, would use 0\.0"
    ):
        compose(archon=strict)
    with pytest.raises(ConfigError, match=r"actor\.gae_lambda_kwargs: found \{alpha: 1\}; not used"):
        compose(archon=strict, kl_ctl=0.0, gae_lambda_kwargs={"alpha": 1})
    compose(archon=strict, kl_ctl=0.0)


def test_truncated_completions_leave_the_loss_or_lose_their_reward():
    filtered, decisions = compose(overlong_filtering=True)
    assert (filtered.filters, filtered.advantages.without_reward) == ((DropTruncated(),), None)
    assert "actor.mask_no_eos_with_zero" not in decisions
    zeroed, decisions = compose(mask_no_eos_with_zero=True)
    assert (zeroed.filters, zeroed.advantages.without_reward) == ((), "truncated")
    assert "actor.overlong_filtering=true" in decisions["actor.mask_no_eos_with_zero"].reason


def test_groups_without_a_difference_leave_the_batch_when_asked():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    batch = Batch.from_sequences([[1, 2]] * 6, sequence_fields={"rewards": rewards, "group": groups})
    selection = compose(dynamic_sampling=True)[0].selection
    assert selection(batch).tolist() == [False, False, True, True, False, False]
    assert compose()[0].selection is None


AREAL = "areal.trainer.ppo.lambda_fn."


@pytest.mark.parametrize(
    ("asked", "arguments", "form"),
    [
        (0.9, {}, ConstantLambda(0.9)),
        (0, {}, ConstantLambda(0)),
        ("length_adaptive", {"alpha": 0.05}, LengthAdaptiveLambda(0.05)),
        ("relative_position", {"q": 1}, RelativePositionLambda(1.0)),
        (AREAL + "vapo_length_adaptive_gae", {"alpha": 2}, LengthAdaptiveLambda(2.0)),
        (AREAL + "relative_position_gae_lambda", {"q": 0.3}, RelativePositionLambda(0.3)),
    ],
)
def test_gae_lambda_is_a_number_or_a_named_form(asked, arguments, form):
    algorithm, decisions = compose(gae_lambda=asked, gae_lambda_kwargs=arguments, gae_timestep_unit="turn")
    assert algorithm.advantages.gae_lambda == form
    assert algorithm.advantages.unit == "turn"
    assert ("actor.gae_lambda" in decisions) is (str(asked).startswith(AREAL))


def test_opo_and_maxrl_are_normalisations_of_the_reward():
    opo, _ = compose(reward_norm=NormConfig(mean_level="group", std_level=None, mean_weights="length"))
    assert opo.advantages.reward_norm == Normalisation("group", None, mean_weights="length")
    maxrl, _ = compose(reward_norm=NormConfig(mean_level="group", std_level="group", scale="mean"))
    assert maxrl.advantages.reward_norm == Normalisation("group", "group", scale="mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_estimator": "k4"}, r"actor\.kl_estimator: found 'k4'; allowed are k1, k2, k3"),
        ({"loss_aggregation": "tokn"}, r"found 'tokn'; allowed are token, sequence, constant; did you mean 'token'"),
        ({"eps_clip": 1.5}, r"actor\.eps_clip: found 1\.5; allowed are numbers from 0 up to 1"),
        ({"c_clip": 0.5}, r"actor\.c_clip: found 0\.5; allowed are numbers above 1"),
        ({"reward_scaling": math.nan}, r"actor\.reward_scaling: found nan; allowed are finite numbers"),
        ({"reward_bias": -math.inf}, r"actor\.reward_bias: found -inf; allowed are finite numbers"),
        ({"entropy_coef": math.nan}, r"actor\.entropy_coef: found nan; allowed are finite numbers"),
        ({"kl_ctl": math.inf}, r"actor\.kl_ctl: found inf; allowed are numbers from 0"),
        (
            {"overlong_reward_penalty": True, "overlong_tokens": 8, "overlong_penalty_factor": math.nan},
            r"actor\.overlong_penalty_factor: found nan; allowed are finite numbers",
        ),
        ({"gae_lambda": 1.5}, r"gae_lambda: found 1\.5; allowed is from 0 to 1, or one of length_adaptive"),
        (
            {"gae_lambda": "length"},
            r"gae_lambda: found 'length'; allowed: a number, length_adaptive or relative_position",
        ),
        ({"gae_lambda": "my.module.f"}, r"gae_lambda: found 'my\.module\.f'.*dotted names are not imported"),
        ({"gae_lambda": "length_adaptive"}, r"gae_lambda_kwargs: found \{\} with gae_lambda=length_adaptive; it needs"),
        (
            {"gae_lambda": "relative_position", "gae_lambda_kwargs": {"q": 1.5}},
            r"gae_lambda_kwargs: found \{q: 1\.5\}.*\{q: NUMBER\}, above 0 up to 1",
        ),
        (
            {"gae_lambda": "length_adaptive", "gae_lambda_kwargs": {"alpha": 1, "q": 1}},
            r"gae_lambda_kwargs: found .*it needs \{alpha: NUMBER\}",
        ),
        ({"adv_norm": NormConfig(mean_weights="length")}, r"actor\.adv_norm: found mean_weights=length .* for rewards"),
        (
            {"reward_norm": NormConfig(std_level="group", scale="mean"), "reward_bias": -0.5},
            r"reward_norm\.scale: found mean with rewards that actor\.reward_bias .* below 0",
        ),
        ({"ppo_n_minibatches": 0}, r"ppo_n_minibatches: found 0; allowed are numbers from 1"),
        ({"overlong_reward_penalty": True}, r"actor\.overlong_tokens: found null; allowed are 1 to 16"),
        (
            {"overlong_reward_penalty": True, "overlong_tokens": 20, "overlong_penalty_factor": 1.0},
            r"actor\.overlong_tokens: found 20; allowed are 1 to 16, which is gconfig\.max_new_tokens",
        ),
        (
            {"reward_norm": NormConfig(mean_level="groups")},
            r"actor\.reward_norm\.mean_level: found 'groups'; allowed are batch, group; .*null for no centring",
        ),
        (
            {"adv_norm": NormConfig(std_level="group", group_size=8)},
            r"group_size: found 8; allowed is gconfig\.n_samples=4",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        compose(**options)


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"^gconfig\.n_samples: found 1; algorithm grpo compares the samples of a"):
        compose(gconfig={"n_samples": 1})
    with pytest.raises(ConfigError, match=r"^actor\.adv_norm: found level 'group', .* and gconfig\.n_samples=1; set"):
        compose(gconfig={"n_samples": 1}, adv_norm=NormConfig(mean_level="group"))


@given(st.sampled_from(["token", "sequence", "constant"]), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1))
def test_an_algorithm_names_every_field_that_its_loss_reads(aggregation, decoupled, ref, recompute, kl_ctl):
    algorithm, _ = compose(
        loss_aggregation=aggregation, use_decoupled_loss=decoupled, ref=ref, recompute_logprob=recompute, kl_ctl=kl_ctl
    )
    assert {"loss_mask", "logprobs", "advantages"} <= algorithm.fields
    assert ("prox_logprobs" in algorithm.fields) is decoupled
    assert ("ref_logprobs" in algorithm.fields) is (ref and kl_ctl > 0)
    assert set(algorithm.objective.request.names) == {"logprobs", "entropy"}


def test_sft_needs_answers_only():
    algorithm = sft(Configuration(Actor(temperature=2.0)), [])
    assert algorithm.fields == {"loss_mask"}
    assert algorithm.objective.request.names == ("logprobs",)
    assert algorithm.objective.request.temperature == 2.0


def test_every_option_is_documented():
    for schema in vars(options_module).values():
        if isinstance(schema, type) and schema.__module__ == options_module.__name__:
            for option in fields(schema):
                assert f"{option.name}:" in schema.__doc__, f"{schema.__name__}.{option.name}"


def test_every_spec_loads():
    for spec in (*plugin.archon_algorithms(), *plugin.archon_rewards(), *plugin.archon_datasets()):
        assert callable(spec.load())
        assert spec.summary
        if hasattr(spec, "load_trainer"):
            assert callable(spec.load_trainer())


def test_the_plugin_and_its_options_import_no_torch():
    code = "import sys, archon_rl.plugin, archon_rl.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "correction"),
    [
        ({}, "the ratio to the rollout's log-probabilities corrects for it"),
        ({"use_decoupled_loss": True}, "the weight pi_prox / pi_behave .* corrects for it"),
        ({"recompute_logprob": True}, "nothing corrects for it"),
    ],
)
def test_sampling_options_that_training_does_not_have_are_decisions(options, correction):
    _, decisions = compose(gconfig={"frequency_penalty": 0.5, "min_new_tokens": 2}, **options)
    for name, value in (("frequency_penalty", "0.5"), ("min_new_tokens", "2")):
        decision = decisions[f"gconfig.{name}"]
        assert (decision.requested, decision.effective) == (value, "in sampling alone")
        assert re.search(correction, decision.reason)
    assert not {"gconfig.frequency_penalty", "gconfig.min_new_tokens"} & set(compose(**options)[1])


@pytest.mark.parametrize(
    ("generation", "cause"),
    [
        ({"ignore_eos": True}, r"gconfig\.ignore_eos=true .* add stop texts"),
        ({"min_new_tokens": 16}, r"gconfig\.min_new_tokens=16, which is gconfig\.max_new_tokens"),
        # At least one token of max_tokens is the prompt's.
        ({"min_new_tokens": 9, "max_tokens": 10}, r"gconfig\.min_new_tokens=9 and gconfig\.max_tokens=10"),
    ],
)
@pytest.mark.parametrize("option", ["overlong_filtering", "mask_no_eos_with_zero"])
def test_completions_that_can_only_end_at_the_limit_cannot_all_be_left_out(option, generation, cause):
    with pytest.raises(ConfigError, match=rf"^actor\.{option}: found true with {cause}"):
        compose(**{option: True}, gconfig=generation)
    compose(**{option: True}, gconfig=generation | {"min_new_tokens": 8, "stop": ["."]})
    compose(gconfig=generation)


@pytest.mark.parametrize(("option", "value"), [("greedy", True), ("top_k", 1)])
def test_a_group_of_equal_samples_is_refused(option, value):
    with pytest.raises(ConfigError, match=rf"^gconfig\.{option}: found {str(value).lower()} with gconfig\.n_samples=4"):
        compose(gconfig={option: value})
    compose(gconfig={option: value, "n_samples": 1}, adv_norm=NormConfig())


def test_rewards_that_are_all_scaled_to_the_same_are_refused():
    with pytest.raises(ConfigError, match=r"^actor\.reward_scaling: found 0, which makes all rewards equal"):
        compose(reward_scaling=0.0)


def test_dynamic_sampling_has_rounds_unless_batches_may_be_smaller():
    refilled, _ = compose(dynamic_sampling=True, dynamic_sampling_max_rounds=7)
    assert (refilled.selection, refilled.max_rounds) == (MixedGroups(), 7)
    smaller, _ = compose(dynamic_sampling=True, dynamic_bs=True)
    assert (smaller.selection, smaller.max_rounds) == (MixedGroups(), 1)
    whole, _ = compose(dynamic_bs=True)
    assert (whole.selection, whole.max_rounds) == (None, 1)
    with pytest.raises(ConfigError, match=r"dynamic_sampling: found true with gconfig\.n_samples=1; .* 2 or more, or"):
        compose(dynamic_sampling=True, adv_norm=NormConfig(), gconfig={"n_samples": 1})
