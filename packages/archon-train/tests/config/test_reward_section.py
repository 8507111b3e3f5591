"""The section of the model that a reward runs."""

from types import SimpleNamespace

from archon_core.contracts.data import RewardSpec
from archon_train.reward_section import reward_section_problems, unused_reward_model

MODEL = RewardSpec(name="model", target="json:loads", role="reward_model")
FUNCTION = RewardSpec(name="gsm8k", target="json:loads")


def config(path: str | None = "", *, given: bool = True) -> SimpleNamespace:
    return SimpleNamespace(reward="model", reward_model=SimpleNamespace(path=path) if given else None)


def test_a_reward_that_runs_a_model_needs_its_checkpoint() -> None:
    for missing in (config(given=False), config(None)):
        [text] = reward_section_problems(missing, MODEL)
        assert text.startswith("reward_model.path: found none, and reward 'model' needs a checkpoint")
    assert not list(reward_section_problems(config("export"), MODEL))
    assert not list(reward_section_problems(config(given=False), FUNCTION))


def test_a_model_that_no_reward_runs_is_a_decision() -> None:
    assert not unused_reward_model(config("export"), MODEL)
    assert not unused_reward_model(config(given=False), FUNCTION)
    for reward in (FUNCTION, None):
        [decision] = unused_reward_model(config("export"), reward)
        assert (decision.option, decision.effective) == ("reward_model", "no effect")
