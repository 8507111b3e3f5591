"""Models beside the actor: what a dry run says of missing, unused and unsuitable ones."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.plugins import AlgorithmSpec, ModelSpec, Registry, TrainEngineSpec
from archon_train.model_sections import missing_reward_model, unused_models
from archon_train.preflight import plan_run
from archon_train.run_plan import RunPlan

from .conftest import plugin, rl_plugin, rollout_plugin

VALUED = "algorithm: valued\nactor: {backend: 'able:d1', model_config: {model_type: tiny}}\n"


@pytest.fixture
def plan(load: Callable[..., LoadedConfig], make_registry: Callable[..., Registry]) -> Callable[[str], RunPlan]:
    registry = make_registry(
        rl_plugin(),
        rollout_plugin(),
        plugin(
            "models",
            TrainEngineSpec(name="able", target="json:loads", axes="dtpcer", model_type="json:loads"),
            ModelSpec(name="tiny", target="json:loads", model_types=("tiny",), capabilities=frozenset({"critic"})),
            ModelSpec(name="headless", target="json:loads", model_types=("headless",)),
            AlgorithmSpec(name="valued", target="json:loads", needs=("inference_engine",), sections=("critic",)),
        ),
    )
    return lambda text: plan_run(load(text, plugins=registry, allow_missing=True), registry)


def problems(found: RunPlan) -> list[str]:
    return [obstacle.text for obstacle in found.obstacles]


def test_a_critic_that_the_algorithm_needs_must_be_there(plan) -> None:
    assert problems(plan(VALUED)) == [
        "critic: found no section, and algorithm 'valued' needs one; add 'critic: {}', which starts from the actor's "
        "initial weights, or choose another algorithm"
    ]
    assert plan(VALUED + "critic: {}\n").can_run
    assert plan(VALUED + "critic: {is_critic: true}\n").can_run


@pytest.mark.parametrize("role", ["actor", "ref", "teacher"])
def test_a_value_head_on_a_model_that_gives_log_probabilities_is_refused(plan, role) -> None:
    text = VALUED.replace("valued", "grpo")
    section = (
        text.replace("{backend", "{is_critic: true, backend")
        if role == "actor"
        else f"{text}{role}: {{is_critic: true}}\n"
    )
    assert any(
        problem.startswith(f"{role}.is_critic: found true; a model with a value") for problem in problems(plan(section))
    )


def test_a_critic_that_no_algorithm_trains_is_a_decision(plan) -> None:
    found = plan(VALUED.replace("valued", "grpo") + "critic: {}\n")
    assert found.can_run
    assert [(d.option, d.effective) for d in found.decisions] == [("critic", "not used")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            VALUED.replace("tiny", "headless") + "critic: {}\n",
            "critic: found a model of 'headless', which has no value",
        ),
        (VALUED + "critic: {model_config: {model_type: headless}}\n", "critic: found a model of 'headless'"),
        (VALUED + "critic: {is_critic: false}\n", "critic.is_critic: found false; the critic has a value head"),
    ],
    ids=["inherited", "its own", "without a head"],
)
def test_a_critic_needs_a_value_head(plan, text: str, message: str) -> None:
    [problem] = problems(plan(text))
    assert problem.startswith(message)


def test_a_critic_may_have_another_model_than_the_actor(plan) -> None:
    actor = VALUED.replace("tiny", "headless")
    assert plan(actor + "critic: {model_config: {model_type: tiny}}\n").can_run


def with_reward_model(path: str | None = "", *, given: bool = True, scratch: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        reward="model", reward_model=SimpleNamespace(path=path, init_from_scratch=scratch) if given else None
    )


def test_a_reward_that_runs_a_model_needs_its_checkpoint() -> None:
    for missing in (with_reward_model(given=False), with_reward_model(None)):
        [text] = missing_reward_model(missing, "reward_model")
        assert text.startswith("reward_model.path: found none, and reward 'model' needs a checkpoint")
    [text] = missing_reward_model(with_reward_model("export", scratch=True), "reward_model")
    assert text.startswith("reward_model.init_from_scratch: found true, so reward 'model' gives random scores")
    assert not list(missing_reward_model(with_reward_model("export"), "reward_model"))


@pytest.mark.parametrize(
    ("needs", "role", "reason"),
    [
        (("inference_engine",), "reward_model", None),
        (("inference_engine",), None, None),  # an unknown reward is an error already
        (("inference_engine",), "", "the reward runs no model; reward=model does"),
        ((), "reward_model", "algorithm taught scores no completions"),
    ],
)
def test_a_model_that_no_reward_runs_is_a_decision(needs, role, reason) -> None:
    config, spec = with_reward_model("export"), AlgorithmSpec(name="taught", target="json:loads", needs=needs)
    config.critic = None
    found = [(d.option, d.effective, d.reason) for d in unused_models(config, spec, role)]
    assert found == ([] if reason is None else [("reward_model", "not used", reason)])
    config.reward_model = None
    assert not list(unused_models(config, spec, role))


def test_a_critic_that_starts_from_the_actor_may_name_its_own_model_and_layout(plan) -> None:
    text = VALUED.replace("able:d1", "archon:d1")
    [problem] = problems(plan(text + "critic: {archon: {model: headless}}\n"))
    assert problem.startswith("critic.archon.model: model 'headless' of archon-models serves the model types headless")
    assert plan(text + "critic: {archon: {model: tiny}}\n").can_run
