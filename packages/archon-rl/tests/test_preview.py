"""What a dry run refuses and records of this package's algorithms, and that compositions refuse the same."""

from __future__ import annotations

import pytest
from conftest import CONFIGURATION

from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import RunOutline
from archon_core.errors import ConfigError
from archon_core.plugins import AlgorithmSpec, DatasetSpec, registry

PPO = ("algorithm=ppo", "critic={}", "actor.ppo_n_minibatches=1", "critic.ppo_n_minibatches=1")
TEACHER = ("teacher.engine_type=train", "teacher.path=large/model")
RANDOM = ("teacher.engine_type=train", "teacher.model_config={model_type: qwen3}")
PURE = (*TEACHER, "teacher.rl_loss_weight=0", "actor.kl_ctl=0.1")
PAIRS = """
algorithm: dpo
tokenizer: {kind: characters}
data: {path: pairs.jsonl, validation_size: 10}
actor: {backend: 'bigram:d1', model_config: {model_type: qwen3}}
"""
TAUGHT = PAIRS.replace("dpo", "sft")


def preview(run, *overrides: str, text: str = CONFIGURATION, explicit=frozenset()):
    config = run.config(*overrides, text=text)
    spec = registry().get(AlgorithmSpec, config.algorithm)
    role = "reward_model" if config.reward == "model" else ""
    outline = RunOutline(config, spec, explicit, registry().get(DatasetSpec, config.data.dataset), role)
    return spec.load_part("preview")(outline), config, spec


REFUSED = [
    (("actor.optimizer=null",), r"actor\.optimizer: found null; algorithm grpo trains the actor"),
    ((*PPO, "actor.optimizer=null"), r"actor\.optimizer: found null; algorithm ppo trains the actor"),
    ((*PPO, "critic.optimizer=null"), r"critic\.optimizer: found null; algorithm ppo trains the critic"),
    (
        (*PPO, "critic.mask_no_eos_with_zero=true", "gconfig.ignore_eos=true"),
        r"critic\.mask_no_eos_with_zero: found true with gconfig\.ignore_eos=true",
    ),
    (
        (*PPO, "critic.mask_no_eos_with_zero=true", "gconfig.min_new_tokens=3"),
        r"critic\.mask_no_eos_with_zero: found true with gconfig\.min_new_tokens=3",
    ),
    (
        (*PURE, "actor.mask_no_eos_with_zero=true", "gconfig.ignore_eos=true"),
        r"actor\.mask_no_eos_with_zero: found true",
    ),
    (("actor.kl_loss_coef=0.1",), r"actor\.kl_loss_coef: found 0\.1, which needs a reference model"),
    (("gconfig.n_samples=1",), r"gconfig\.n_samples: found 1; algorithm grpo compares the samples of a prompt"),
    (("gconfig.greedy=true",), r"gconfig\.greedy: found true with gconfig\.n_samples=4, so that all"),
]
"""Overrides, and what dry run and composition refuse."""


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(case[0][-2:]) for case in REFUSED])
def test_dry_run_and_composition_refuse_the_same(run, overrides, message):
    found, config, spec = preview(run, *overrides)
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        spec.load()(config, [])
    assert str(raised.value) in found.problems


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("workflow=multi_turn", "reward=null"),
            "workflow: found multi_turn without a reward, which tells right answers from wrong ones; set reward, or",
        ),
        (
            ("workflow=multi_turn", "reward=model", "reward_model={path: x}"),
            "workflow: found multi_turn with reward=model, a model on the trainer's ranks that scores the completions",
        ),
    ],
)
def test_a_workflow_that_the_reward_does_not_suit_is_refused(run, overrides, message):
    found, _, _ = preview(run, *overrides)
    assert any(problem.startswith(message) for problem in found.problems)


@pytest.mark.parametrize("text", [PAIRS, PAIRS.replace("dpo", "rw"), TAUGHT], ids=["dpo", "rw", "sft"])
def test_a_model_without_an_optimizer_is_not_trained(run, text):
    found, config, spec = preview(run, "actor.optimizer=null", text=text)
    with pytest.raises(ConfigError, match=r"^actor\.optimizer: found null"):
        spec.load()(config, [])
    assert any(problem.startswith("actor.optimizer: found null") for problem in found.problems)


@pytest.mark.parametrize(
    ("overrides", "text", "message"),
    [
        ((*PPO, "critic.warmup_steps=6"), CONFIGURATION, "critic.warmup_steps: found 6, and the run has 6 steps"),
        ((*PPO, "critic.ppo_n_minibatches=17"), CONFIGURATION, "critic.ppo_n_minibatches: found 17; allowed is"),
        (("actor.ppo_n_minibatches=17",), CONFIGURATION, "actor.ppo_n_minibatches: found 17; allowed is at most"),
        (("eval_gconfig={greedy: true, n_samples: 2}",), CONFIGURATION, "eval_gconfig.greedy: found true with eval_g"),
        (("eval_gconfig={top_k: 1, n_samples: 2}",), CONFIGURATION, "eval_gconfig.top_k: found 1 with eval_gconfig"),
        (("actor.optimizer.lr=0",), CONFIGURATION, "actor.optimizer.lr: found 0, with which the actor never changes"),
        (("actor.optimizer.lr=0",), TAUGHT, "actor.optimizer.lr: found 0, with which the actor never changes"),
        ((*PPO, "critic.optimizer.lr=0"), CONFIGURATION, "critic.optimizer.lr: found 0, with which the critic never"),
        ((*RANDOM,), CONFIGURATION, "teacher.warm_start.steps: found 0 with no teacher.path, so the"),
        ((*PURE, "teacher.init_from_scratch=true"), CONFIGURATION, "teacher.warm_start.steps: found 0 with init_from"),
        (("data.answer_key=null",), CONFIGURATION, "data.answer_key: found null; the data set 'arithmetic' needs"),
        (("data.dataset=arithmetic",), PAIRS, "data.dataset: found arithmetic, whose records are no preferences"),
        (("actor.is_critic=true",), TAUGHT, "actor.is_critic: found true; a model with a value head has"),
        (("data.dataset=hf", "data.hf.validation_split=train"), TAUGHT, "data.hf.validation_split: found split"),
        (("tokenizer.kind=pretrained",), TAUGHT, "tokenizer.kind: found 'pretrained', and neither tokenizer_path nor"),
        (("tokenizer={kind: bpe, vocab_size: 9}",), TAUGHT, "tokenizer.vocab_size: found 9; allowed is at least 260"),
        (("actor.path=some/model",), TAUGHT, "tokenizer.kind: found 'characters', but the weights of actor.path="),
        (("actor.archon.strict=true", "reward=gsm8k"), TAUGHT, "actor.archon.strict: found true, and settings that"),
    ],
)  # fmt: skip
def test_a_dry_run_finds_what_a_run_would_refuse(run, overrides, text, message):
    if any("archon" in override for override in overrides):
        text = text.replace("bigram:d1", "archon:d1")
    found, *_ = preview(run, *overrides, text=text)
    assert any(problem.startswith(message) for problem in found.problems), found


def test_settings_that_a_script_may_hold_are_missing(run):
    text = CONFIGURATION.replace(", arithmetic: {max_operand: 4}", "")
    found, *_ = preview(run, "reward=null", "data.dataset=jsonl", "data.path=null", text=text)
    assert [text.partition(";")[0] for text in found.missing] == [
        "reward: found none, and algorithm 'grpo' needs one",
        "data.path: found none, and data set 'jsonl' needs one",
    ]
    assert not preview(run, "reward=null", *PURE)[0].missing


COMPOSED = [
    (CONFIGURATION, ("actor.kl_ctl=0.5",), "actor.kl_ctl", "0.5", "0.0"),
    (CONFIGURATION, ("actor.temperature=0.3",), "actor.temperature", "0.3", "1.0"),
    (CONFIGURATION, ("actor.m2_threshold=0.04", "actor.eps_clip=0"), "actor.eps_clip", "0.0", "no clipping"),
    (CONFIGURATION, ("gconfig.frequency_penalty=0.5",), "gconfig.frequency_penalty", "0.5", "in sampling alone"),
    (CONFIGURATION, PURE, "teacher.rl_loss_weight", "0", "KL(actor || teacher) of each sampled token"),
    (CONFIGURATION, PPO, "critic.bootstrap_truncated", "false", "a completion ends with value 0"),
    (PAIRS, ("actor.mb_spec.granularity=4",), "actor.mb_spec.granularity", "4", "2"),
    (PAIRS, (), "ref", "left out", "the actor's initial weights"),
    (PAIRS.replace("dpo", "rw"), (), "actor.is_critic", "false", "true"),
]
"""Configuration, overrides, and a decision of the composition."""


@pytest.mark.parametrize(("text", "overrides", "option", "requested", "effective"), COMPOSED)
def test_a_dry_run_shows_what_the_composition_decides(run, text, overrides, option, requested, effective):
    found, config, spec = preview(run, *overrides, text=text)
    recorded: list[Decision] = []
    spec.load()(config, recorded)
    assert (option, requested, effective) in [(d.option, d.requested, d.effective) for d in recorded]
    assert set(recorded) <= set(found.decisions)


@pytest.mark.parametrize(
    ("text", "overrides", "changed"),
    [
        (CONFIGURATION, ("actor.sapo_tau_pos=2",), "actor.sapo_tau_pos: found 2.0; not used"),
        (CONFIGURATION, ("actor.kl_ctl=0.5",), "actor.kl_ctl: found 0.5, would use 0.0"),
        (PAIRS, ("actor.mb_spec.granularity=4",), "actor.mb_spec.granularity: found 4, would use 2"),
    ],
)
def test_strict_dry_runs_refuse_what_strict_compositions_refuse(run, text, overrides, changed):
    strict = text.replace("bigram:d1", "archon:d1")
    found, config, spec = preview(run, "actor.archon.strict=true", *overrides, text=strict)
    with pytest.raises(ConfigError) as raised:
        spec.load()(config, [])
    assert changed in str(raised.value)
    assert any(changed in problem for problem in found.problems)


UNUSED = [
    # algorithms that sample nothing
    (TAUGHT, ("gconfig={n_samples: 2, greedy: true}",), "gconfig", "n_samples=2, greedy=true"),
    (TAUGHT, ("dynamic_bs=true",), "dynamic_bs", "true"),
    (TAUGHT, ("eval_gconfig={}",), "eval_gconfig", "a section"),
    (TAUGHT, ("ref={}",), "ref", "a section"),
    (TAUGHT, ("teacher={path: some/model}",), "teacher", "path=some/model"),
    (PAIRS, ("data.answer_key=reply",), "data.answer_key", "reply"),
    (PAIRS, ("trainer.eval_pass_above=0.5",), "trainer.eval_pass_above", "0.5"),
    (PAIRS, ("ref={}", "ref.mb_spec.granularity=2"), "ref.mb_spec.granularity", "2"),
    (PAIRS.replace("dpo", "rw"), ("actor.temperature=0.5",), "actor.temperature", "0.5"),
    (PAIRS.replace("dpo", "rw"), ("ref={}",), "ref", "a section"),
    # sampling
    (CONFIGURATION, ("actor.dynamic_sampling_max_rounds=3",), "actor.dynamic_sampling_max_rounds", "3"),
    (
        CONFIGURATION,
        ("actor.dynamic_sampling=true", "dynamic_bs=true", "actor.dynamic_sampling_max_rounds=3"),
        "actor.dynamic_sampling_max_rounds",
        "3",
    ),
    (CONFIGURATION, ("dynamic_bs=true",), "dynamic_bs", "true"),
    (CONFIGURATION, (*PURE, "actor.dynamic_sampling=true", "dynamic_bs=true"), "dynamic_bs", "true"),
    (CONFIGURATION, ("eval_gconfig={n_samples: 2}", "data.validation_size=0"), "eval_gconfig", "n_samples=2"),
    (CONFIGURATION, (*PURE, "reward=null", "eval_gconfig={n_samples: 2}"), "eval_gconfig", "n_samples=2"),
    (CONFIGURATION, (*PURE, "reward=null"), "trainer.eval_every", "2"),
    (CONFIGURATION, ("rollout.agent.mode=online", "rollout.backend=served:d1", "reward=null"),
     "trainer.eval_every", "2"),
    (CONFIGURATION, ("ref={}",), "ref", "a section"),
    (CONFIGURATION, ("ref={}", "actor.kl_ctl=0.1", "ref.optimizer.lr=0.5"), "ref.optimizer", "lr=0.5"),
    (
        CONFIGURATION,
        ("reward=model", "reward_model.path=scores", "reward_model.optimizer.lr=0.5"),
        "reward_model.optimizer",
        "lr=0.5",
    ),
    (CONFIGURATION, ("reward=model", "reward_model.path=scores"), "rewards.processes", "0"),
    (CONFIGURATION, ("gconfig={greedy: true, top_p: 0.5, n_samples: 1}", *PURE), "gconfig.top_p", "0.5"),
    (CONFIGURATION, ("rollout.backend=local", "rollout.request_timeout=9"), "rollout.request_timeout", "9.0"),
    (CONFIGURATION, ("rollout.backend=served:d1", "rollout.enable_health_monitor=false",
                     "rollout.health_check_timeout_seconds=9"), "rollout.health_check_timeout_seconds", "9.0"),
    (CONFIGURATION, ("actor.reward_norm={std_level: null, eps: 0.5}",), "actor.reward_norm.eps", "0.5"),
    (
        CONFIGURATION,
        ("actor.reward_norm={scale: mean, mean_level: group, std_level: group, std_unbiased: false}",),
        "actor.reward_norm.std_unbiased",
        "false",
    ),
    (CONFIGURATION, ("actor.optimizer={type: sgd, beta2: 0.5}",), "actor.optimizer.beta2", "0.5"),
    # a policy loss, a form of lambda and a proximal policy that read other options
    (CONFIGURATION, ("actor.sapo_tau_pos=2",), "actor.sapo_tau_pos", "2.0"),
    (CONFIGURATION, ("actor.policy_loss=kl_cov", "actor.eps_clip=0.1"), "actor.eps_clip", "0.1"),
    (CONFIGURATION, ("actor.rejection_sampling.upper=4",), "actor.rejection_sampling", "upper=4.0"),
    (CONFIGURATION, ("actor.prox_logp_method=loglinear",), "actor.prox_logp_method", "loglinear"),
    (CONFIGURATION, ("actor.use_decoupled_loss=true", "actor.recompute_logprob=true"),
     "actor.recompute_logprob", "true"),
    (CONFIGURATION, ("actor.gae_lambda_kwargs.alpha=3",), "actor.gae_lambda_kwargs", "{alpha: 3}"),
    (CONFIGURATION, (*PPO, "critic.temperature=0.5"), "critic.temperature", "0.5"),
    (CONFIGURATION, (*PURE, "actor.eps_clip=0.1"), "actor.eps_clip", "0.1"),
    (CONFIGURATION, (*PURE, "actor.dynamic_sampling=true"), "actor.dynamic_sampling", "true"),
    (CONFIGURATION, (*PURE, "actor.reward_norm={mean_level: group}"), "actor.reward_norm", "mean_level=group"),
    (PAIRS, ("actor.ipo_logprobs=sum",), "actor.ipo_logprobs", "sum"),
    (CONFIGURATION, ("data.path=file",), "data.path", "file"),
    (CONFIGURATION, ("trainer.max_epochs=3",), "trainer.max_epochs", "3"),
]  # fmt: skip
"""Configuration, overrides, and the option and values that the decision names."""


@pytest.mark.parametrize(("text", "overrides", "option", "requested"), UNUSED)
def test_an_option_without_effect_is_a_decision(run, text, overrides, option, requested):
    found, *_ = preview(run, *overrides, text=text)
    assert not found.problems
    [decision] = [d for d in found.decisions if d.option == option]
    assert (decision.requested, decision.effective) == (requested, "not used")


def test_a_teacher_that_is_trained_first_may_have_random_weights(run):
    assert not preview(run, *RANDOM, "teacher.warm_start.steps=3")[0].problems


def unused(*arguments, **keywords) -> list[str]:
    return [d.option for d in preview(*arguments, **keywords)[0].decisions if d.effective == "not used"]


def test_used_options_are_no_decisions(run):
    assert not unused(run)
    sampled = "eval_gconfig={n_samples: 2, temperature: 0.5}"
    assert not unused(run, sampled, "trainer.eval_pass_above=0.5")
    assert not unused(run, *PPO, "ref={}", "actor.kl_ctl=0.1", "critic.warmup_steps=2")
    assert not unused(run, "actor.dynamic_sampling=true", "dynamic_bs=true")
    assert not unused(run, "ref={optimizer: null}", text=PAIRS)
    assert not unused(run, text=TAUGHT)
    gives_rewards = ("workflow=environment", "reward=null", sampled)
    assert not {"trainer.eval_every", "eval_gconfig"} & set(unused(run, *gives_rewards))
