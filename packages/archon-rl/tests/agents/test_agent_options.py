"""Options of agents: what is refused before a run starts, and what is recorded."""

import asyncio
import sys

import pytest
from chat_client import ChatClient, parts_of
from chat_tokenizers import CHATML, chat_tokenizer

from archon_core.contracts.preview import RunOutline
from archon_core.errors import ConfigError, DataError
from archon_core.plugins import AlgorithmSpec, DatasetSpec, registry
from archon_rl.agents.chat_requests import parse_chat
from archon_rl.agents.checks import agent_decisions, agent_problems, workflow_name
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.session import Session
from archon_rl.agents.session_parts import session_parts
from archon_rl.preview import preview_grpo
from archon_rl.workflows.rewards_needed import evaluates_rewards, gives_rewards, uses_reward
from archon_train.experiment import load_config

MODULE = """
class Agent:
    async def run(self, data, **extra_kwargs):
        return 1.0


def shout(messages):
    return [{**message, "content": message["content"].upper()} for message in messages]


def breaks(messages):
    return messages[99]


def any_earlier(earlier, later):
    return len(earlier) == len(later)
"""
AGENT = "rollout.agent.agent_cls_path=my_agent_module:Agent"
SERVED = "rollout.backend=served:d1"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_agent_module.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "run.yaml").write_text("algorithm: grpo\ndata: {dataset: arithmetic}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_agent_module", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def load(*overrides):
    return load_config("run.yaml", overrides).config


def test_a_run_without_agents_has_no_problem_and_needs_a_reward():
    config = load()
    assert [*agent_problems(config)] == [*agent_decisions(config)] == []
    assert workflow_name(config) == "rlvr"
    assert not gives_rewards(config)


@pytest.mark.parametrize("overrides", [(AGENT,), (AGENT, "workflow=agent"), (AGENT, "rollout.agent.mode=subproc")])
def test_agents_choose_their_workflow_and_give_the_rewards_of_training_and_evaluations(overrides):
    config = load(SERVED, *overrides, "reward=arithmetic")
    assert [*agent_problems(config)] == []
    assert workflow_name(config) == "agent"
    assert gives_rewards(config)
    assert evaluates_rewards(config)
    assert not uses_reward(config)
    found = {one.option: one.effective for one in agent_decisions(config)}
    assert found == ({} if "workflow=agent" in overrides else {"workflow": "agent"})


def preview_of(*overrides):
    config = load(*overrides)
    algorithm, dataset = registry().get(AlgorithmSpec, "grpo"), registry().get(DatasetSpec, config.data.dataset)
    role = "reward_model" if config.reward == "model" else ""
    return preview_grpo(RunOutline(config, algorithm, frozenset(), dataset, role))


def unused(*overrides):
    return {one.option: one.reason for one in preview_of(SERVED, "data.validation_size=9", *overrides).decisions}


def test_a_reward_beside_agents_is_unused_and_the_options_of_evaluations_are_used():
    sampled = ("trainer.eval_every=3", "eval_gconfig={n_samples: 2}", "trainer.eval_pass_above=0.5")
    found = unused(AGENT, "reward=arithmetic", "rewards.processes=3", *sampled)
    assert found["reward"] == "agents return the rewards of their sessions, in evaluations too"
    assert found["rewards.processes"] == "the workflow gives the rewards"
    evaluation = {"trainer.eval_every", "eval_gconfig", "trainer.eval_pass_above"}
    assert not evaluation & set(found)
    online = unused("rollout.agent.mode=online", *sampled)
    assert online["eval_gconfig"].startswith("agents from outside run on training records alone")
    assert not evaluation & set(unused("rollout.agent.mode=online", "reward=gsm8k", *sampled))


@pytest.mark.parametrize("agents", [AGENT, "rollout.agent.mode=online"])
def test_a_reward_model_beside_agents_is_refused(agents):
    found = preview_of(SERVED, agents, "reward=model", "reward_model.path=scores").problems
    message = "reward: found model, a model that scores the completions of a whole step, with agents"
    assert any(problem.startswith(message) for problem in found)


def test_a_reward_evaluates_runs_whose_agents_come_from_outside():
    config = load(SERVED, "rollout.agent.mode=online", "reward=arithmetic")
    assert gives_rewards(config)
    assert uses_reward(config)
    assert evaluates_rewards(config)
    found = {one.option: one.effective for one in agent_decisions(config)}
    assert found == {"workflow": "agent", "reward": "in evaluations alone, which score single answers"}
    assert not evaluates_rewards(load(SERVED, "rollout.agent.mode=online"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((AGENT, "rollout.backend=local"), "rollout.backend: found 'local'; agents call the model whenever they want"),
        ((SERVED, "workflow=agent"), "rollout.agent.agent_cls_path: found none with workflow=agent"),
        ((SERVED, AGENT, "workflow=multi_turn"), "workflow: found 'multi_turn' with rollout.agent"),
        ((SERVED, AGENT + "s"), "found no 'Agents' in"),
        ((SERVED, AGENT, "rollout.agent.tool_call_parser=qwem"), "rollout.agent.tool_call_parser: "),
        ((SERVED, AGENT, "rollout.agent.reasoning_parser=none"), "rollout.agent.reasoning_parser: "),
        ((SERVED, AGENT, "rollout.agent.prefix_matcher=my_agent_module:shout"), "allowed is a function of (earlier, l"),
        ((SERVED, AGENT, "rollout.agent.message_preprocessors=[my_agent_module:any_earlier]"), "function of (messages"),
    ],
)
def test_agents_that_cannot_run_are_refused_before_the_start(overrides, message):
    found = [*agent_problems(load(*overrides))]
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((AGENT, "rollout.agent.mode=online"), "found 'my_agent_module:Agent' with mode=online"),
        (("rollout.agent.admin_api_key=areal-admin-key", "rollout.agent.host=0.0.0.0"), "found AReaL's default with"),
        (("rollout.agent.admin_api_key=''",), "found an empty text, with which anyone could start sessions"),
        (("rollout.agent.turn_discount=2",), "found 2"),
        (("rollout.agent.export_style=tree",), "allowed are individual, concat"),
        (("rollout.agent.session_timeout_seconds=0",), "allowed are numbers above 0"),
        (("rollout.agent.subproc_max_workers=0",), "rollout.agent.subproc_max_workers: found 0"),
    ],
)
def test_values_out_of_range_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_the_default_key_of_areal_is_accepted_on_this_machine_alone():
    assert load("rollout.agent.admin_api_key=areal-admin-key").rollout.agent.admin_api_key == "areal-admin-key"


def test_functions_of_the_user_change_messages_and_match_conversations():
    tokenizer = chat_tokenizer(CHATML)
    options = AgentOptions(
        message_preprocessors=["my_agent_module:shout"],
        prefix_matcher="my_agent_module:any_earlier",
        chat_template_type="concat",
    )
    client = ChatClient(tokenizer, script=["one", "two"])
    session = Session(session_parts(options, parts_of(tokenizer)), client, 1)

    async def ask(*contents):
        roles = ["user", "assistant", "user"]
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
        await session.answer(parse_chat({"messages": messages}, session.parts.repeatable))

    async def run():
        await ask("a")
        await ask("quite", "another", "end")

    asyncio.run(run())
    assert tokenizer.decode(client.requests[0].prompt_ids).startswith("<|im_start|>user\nA<|im_end|>")
    assert "assistant\none<|im_end|>\n<|im_start|>user\nEND" in tokenizer.decode(client.requests[1].prompt_ids)
    broken = AgentOptions(message_preprocessors=["my_agent_module:breaks"])
    session = Session(session_parts(broken, parts_of(tokenizer)), client, 1)
    with pytest.raises(DataError, match=r"breaks' raised IndexError: list index out of range \(my_agent_module.py:"):
        asyncio.run(ask("a"))
