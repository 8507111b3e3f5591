"""Evaluations of agents, whose sessions a collector runs, on stand-in servers.

``tests/test_agent_runs.py`` runs real processes, servers and clients.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import pytest
from bigram_serving import BigramClient, Faults, ThreadLink
from run_results import rows, table

from archon_core.errors import RewardError
from archon_rl.agents.workflow import AgentWorkflow
from archon_rl.trainer.evaluation import evaluation_seeds
from archon_rl.trainer.sampling_ahead import SampleAhead

AGENTS = '''
import asyncio
import json


async def ask(base_url, api_key, text, **fields):
    """The content of the answer, or an error of the collector."""
    host, _, path = base_url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    reader, writer = await asyncio.open_connection(name, int(port))
    head = f"POST /{path}/chat/completions HTTP/1.1\\r\\nHost: {host}\\r\\nAuthorization: Bearer {api_key}\\r\\n"
    writer.write(f"{head}Connection: close\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n".encode() + body)
    answer = json.loads((await reader.read()).partition(b"\\r\\n\\r\\n")[2])
    writer.close()
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    return answer["choices"][0]["message"]["content"]


class Length:
    """Returns the length of its answer, and a tenth of the sum."""

    def __init__(self, fails=(), sleeps=(), **fields):
        self.fails, self.sleeps, self.fields = fails, sleeps, fields

    async def run(self, data, base_url, api_key):
        content = await ask(base_url, api_key, data["question"], **self.fields)
        if data["question"] in self.sleeps:
            await asyncio.sleep(60)
        if data["question"] in self.fails:
            raise ValueError("no answer is good enough")
        return len(content) + int(data["answer"]) / 10


class Twice:
    """Rewards both of its answers, to records with a small sum; the others get one answer."""

    async def run(self, data, base_url, api_key):
        await ask(base_url, api_key, data["question"])
        if int(data["answer"]) < 4:
            await ask(base_url, api_key, data["question"] + "1")
            return 1.0
        return 0.0

'''
LENGTHS = "def score(prompt, completion, record):\n    return len(completion) + int(record['answer']) / 10\n"
SEED = 2  # with which the most probable completion has a character
SERVED = (f"seed={SEED}", "rollout.backend=bigram_collected:d1", "cluster.n_gpus_per_node=9")
LENGTH = (*SERVED, "reward=null", "rollout.agent.agent_cls_path=my_agents:Length")
FEW = ("trainer.max_steps=3", "trainer.eval_every=2")
SAMPLED = ("eval_gconfig.n_samples=3", "eval_gconfig.max_new_tokens=3", "eval_gconfig.temperature=0.7")


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "my_agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "my_lengths.py").write_text(LENGTHS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("my_agents", "my_lengths"):
        sys.modules.pop(name, None)


@pytest.fixture
def sessions(monkeypatch):
    """The sampling options, the records and the seeds of all groups."""
    found, run = [], AgentWorkflow.run_sessions

    async def note(self, parts, client, record, seeds):
        found.append((parts.options, record, tuple(seeds)))
        return await run(self, parts, client, record, seeds)

    monkeypatch.setattr(AgentWorkflow, "run_sessions", note)
    return found


def evaluations(folder) -> dict[int, dict[str, float]]:
    """Step -> the metrics of its evaluation."""
    found = {row["step"]: {k: v for k, v in row.items() if k.startswith("eval/")} for row in rows(folder)}
    return {step: metrics for step, metrics in found.items() if metrics}


def of_steps(folder) -> list[dict[str, float]]:
    """What training computes, without evaluations and times."""
    left_out = ("eval/", "time/", "memory/", "collector/", "tokens_per_second")
    return [
        {name: value for name, value in row.items() if not name.startswith(left_out)}
        for row in rows(folder)
        if "selected" in row
    ]


def test_sessions_evaluate_greedily_what_answers_of_the_same_weights_get(collected, sessions):
    folder = collected(*LENGTH, *FEW)
    alone = collected(f"seed={SEED}", "reward=my_lengths:score", "trainer.max_steps=1", "trial_name=alone")
    found = evaluations(folder)
    assert list(found) == [0, 2, 3]
    expected = evaluations(alone)[0]["eval/reward"]  # of float32 rewards
    assert found[0] == {"eval/reward": pytest.approx(expected, rel=1e-6), "eval/session_calls": 1.0}
    assert found[0]["eval/reward"] > 1.0
    greedy = [(record, seeds) for options, record, seeds in sessions if options.greedy]
    assert len({record["question"] for record, _ in greedy}) == 10
    expected = {(evaluation_seeds(SEED)(place, 0),) for place in range(10)}
    assert sorted(seeds for _, seeds in greedy) == sorted([*expected] * 3), "every evaluation draws the same numbers"


@pytest.mark.parametrize("layout", ["d1", pytest.param("d2", marks=pytest.mark.wide)])
def test_evaluations_change_no_number_of_training(collected, layout):
    ahead = ("rollout.max_head_offpolicyness=0", f"actor.backend=bigram:{layout}", "actor.dynamic_sampling=true")
    ranks = int(layout[1:])
    without = collected(
        *LENGTH, *FEW, *ahead, "trainer.eval_every=0", "trainer.eval_size=1", "trial_name=a", ranks=ranks
    )
    consumed = dict(collected.steps)
    found = collected(*LENGTH, *FEW, *ahead, "trainer.eval_every=1", *SAMPLED, "trial_name=b", ranks=ranks)
    assert of_steps(found) == of_steps(without)
    assert collected.steps == consumed
    assert [*evaluations(found)] == [0, 1, 2, 3]


def test_samples_of_evaluations_have_their_own_options_and_no_selection(collected, sessions, monkeypatch):
    evaluate, generate, settled, names = SampleAhead.evaluate, BigramClient.generate, [], Counter()

    def note(self, n_records):
        settled.append(evaluate(self, n_records))
        return settled[-1]

    async def note_name(self, request, *, group=""):
        names[group] += 1
        return await generate(self, request, group=group)

    monkeypatch.setattr(SampleAhead, "evaluate", note)
    monkeypatch.setattr(BigramClient, "generate", note_name)
    folder = collected(*LENGTH, *SAMPLED, "trainer.max_steps=1", "actor.dynamic_sampling=true", "trainer.eval_size=4")
    metrics = ["eval/reward_avg@3", "eval/pass@1", "eval/pass@2", "eval/pass@3", "eval/session_calls"]
    assert [[*found] for found in evaluations(folder).values()] == [metrics] * 2
    own = [(options.max_new_tokens, seeds) for options, _, seeds in sessions if options.temperature == 0.7]
    drawn = [(3, tuple(evaluation_seeds(SEED)(place, number) for number in range(3))) for place in range(4)]
    assert sorted(own) == sorted([*drawn] * 2)
    assert [[*groups] for groups in settled] == [[0, 1, 2, 3]] * 2
    groups = [one for found in settled for one in found.values()]
    assert all(one.accepted and not one.group.trajectories for one in groups)
    assert any(len(set(one.group.rewards)) == 1 for one in groups), "dynamic sampling rejects such a group"
    assert {name: n for name, n in names.items() if "-" in name} == {f"evaluation-{place}": 6 for place in range(4)}


@pytest.mark.parametrize("export_style", ["individual", "concat"])
def test_the_reward_of_an_evaluation_is_the_mean_over_sessions_however_many_calls_they_have(
    collected, sessions, export_style
):
    agent = ("reward=null", "rollout.agent.agent_cls_path=my_agents:Twice")
    options = (f"rollout.agent.export_style={export_style}", "rollout.agent.turn_discount=0.5")
    folder = collected(*SERVED, *agent, *options, "trainer.max_steps=1", "gconfig.n_samples=2")
    small = [int(record["answer"]) < 4 for one, record, _ in sessions if one.greedy][:10]
    share = sum(small) / 10
    assert 0 < share < 1
    assert evaluations(folder)[1] == pytest.approx({"eval/reward": share, "eval/session_calls": 1 + share})
    trained = [int(record["answer"]) < 4 for one, record, _ in sessions if not one.greedy][:4]
    share = sum(trained) / 4
    [row] = [row for row in rows(folder) if "selected" in row]
    assert row["workflow/session_reward"] == pytest.approx(share)
    assert row["workflow/session_calls"] == pytest.approx(1 + share)


def test_a_request_may_repeat_the_sampling_options_of_training_in_greedy_evaluations(collected):
    kwargs = "rollout.agent.agent_kwargs={temperature: 1.0, top_p: 1.0}"
    folder = collected(*LENGTH, "trainer.max_steps=1", kwargs)
    plain = collected(*LENGTH, "trainer.max_steps=1", "trial_name=plain")
    assert evaluations(folder) == evaluations(plain)
    with pytest.raises(RewardError, match=r"temperature: found 0\.5; this run samples with gconfig\.temperature=1,"):
        collected(*LENGTH, "trainer.max_steps=1", "rollout.agent.agent_kwargs={temperature: 0.5}", "trial_name=another")


def test_held_out_records_that_are_too_long_are_left_out_of_sessions_too(collected, sessions):
    sums = ("data.arithmetic.max_operand=12", "data.max_length=5", "data.validation_size=30")
    folder = collected(*LENGTH, *sums, "trainer.max_steps=1")
    output = " ".join((folder.path / "output.txt").read_text(encoding="utf-8").split())
    [n_left_out] = map(int, re.findall(r"Left out (\d+) of 30 held-out records", output))
    greedy = [record["question"] for options, record, _ in sessions if options.greedy]
    assert len(set(greedy)) == 30 - n_left_out > 0
    assert all(len(question) == 4 for question in greedy), "and a token before it"


@pytest.mark.parametrize(("cause", "seconds"), [("fails", 600), pytest.param("sleeps", 3, marks=pytest.mark.wide)])
def test_failed_sessions_are_counted_and_explained_and_end_the_run_when_there_are_too_many(
    collected, sessions, cause, seconds
):
    collected(*LENGTH, "trainer.max_steps=1", "trial_name=first")
    questions = [record["question"] for options, record, _ in sessions if options.greedy]
    some = (
        *LENGTH,
        "trainer.max_steps=1",
        "trainer.eval_size=4",
        f"rollout.agent.session_timeout_seconds={seconds}",
        "rewards.max_failed=1.0",
    )
    folder = collected(*some, f"rollout.agent.agent_kwargs={{{cause}: {questions[:2]}}}")
    found = evaluations(folder)
    assert all(metrics["eval/reward_failed"] == 2 for metrics in found.values())
    output = (folder.path / "output.txt").read_text(encoding="utf-8")
    assert "Evaluation: no reward for 2 of 4 completions" in " ".join(output.split())
    with pytest.raises(RewardError, match="Evaluation: no reward for any of 4 completions"):
        collected(*some, f"rollout.agent.agent_kwargs={{{cause}: {questions[:4]}}}", "trial_name=all")


@pytest.mark.parametrize("loss", ["lost_before", pytest.param("lost_after", marks=pytest.mark.wide)])
def test_a_collector_that_dies_in_an_evaluation_is_replaced_and_the_evaluation_repeated(collected, monkeypatch, loss):
    few = (*LENGTH, "trainer.max_steps=2", "trainer.eval_every=1", "rollout.max_head_offpolicyness=0")
    whole = collected(*few, "trial_name=whole")
    for number in (1, 3):  # of the calls of three evaluations, one or more each
        monkeypatch.setattr(ThreadLink, "faults", Faults(**{loss: (number,)}, only="evaluate"))
        found = collected(*few, f"trial_name=lost-{number}")
        assert ThreadLink.faults.n_collectors == 2
        assert evaluations(found) == evaluations(whole)
        assert of_steps(found) == of_steps(whole)


@pytest.mark.parametrize(
    ("step", "end"),
    [(0, "before the first step"), (1, "after step 1"), pytest.param(2, "after step 2", marks=pytest.mark.wide)],
)
def test_a_request_to_stop_ends_a_run_in_an_evaluation(collected, monkeypatch, step, end):
    few = (*LENGTH, "trainer.max_steps=2", "trainer.eval_every=1", "rollout.max_head_offpolicyness=0")
    take = SampleAhead._take_evaluation

    def wait(self, n_records, link):
        if self._published[0] < step:
            return take(self, n_records, link)
        self.run.stop.request()
        return None

    monkeypatch.setattr(SampleAhead, "_take_evaluation", wait)
    with pytest.raises(KeyboardInterrupt, match=f"stopped {end}"):
        collected(*few)
    monkeypatch.setattr(SampleAhead, "_take_evaluation", take)
    if step == 0:
        return
    folder = collected(*few, "trainer.resume=true")
    whole = collected(*few, "trial_name=whole")
    assert of_steps(folder) == of_steps(whole)
    assert (table(folder) == table(whole)).all()
    expected = evaluations(whole)
    assert evaluations(folder) == {done: expected[done] for done in expected if done != step}
