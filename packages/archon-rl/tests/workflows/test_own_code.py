"""The code of a run's workflow: functions of the user's own modules behind several options, and their fingerprints."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from run_results import rows

from archon_core.errors import ConfigError
from archon_rl.agents.options import AgentOptions
from archon_rl.workflows.own_code import check_code, code_fingerprints, own_code
from archon_rl.workflows.tool_options import EnvironmentOptions, ToolsOptions

NEVER_IMPORTED = "raise RuntimeError('imported')\nimport my_table\n\n\n"
FUNCTIONS = {
    "my_tools": "def population(city: str):\n    ...\n\n\ndef area(city: str):\n    ...\n",
    "my_game": "def game(options, seed):\n    ...\n",
    "my_agent": "async def run(data): ...\n\n\ndef shorter(messages): ...\n\n\ndef same(earlier, later): ...\n",
    "my_flow": "def flow(config, parts):\n    ...\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FUNCTIONS.items():
        (tmp_path / f"{name}.py").write_text(NEVER_IMPORTED + text)
    (tmp_path / "my_table.py").write_text("TABLE = {}\n")
    yield tmp_path
    for name in (*FUNCTIONS, "my_table", "my_rounds"):
        sys.modules.pop(name, None)


def config(workflow: str, **agent):
    sections = {
        "tools": ToolsOptions(names=["calculator", "my_tools:population", "my_tools:area"]),
        "environment": EnvironmentOptions(name="my_game:game"),
    }
    found = {name: section for name, section in sections.items() if name == workflow}
    return SimpleNamespace(workflow=workflow, rollout=SimpleNamespace(agent=AgentOptions(**agent)), **found)


AGENT = {
    "agent_cls_path": "my_agent:run",
    "message_preprocessors": ["my_agent:shorter"],
    "prefix_matcher": "my_agent:same",
}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (config("rlvr"), {}),
        (config("tools"), {"tools.names": ["population", "area"]}),
        (config("environment"), {"environment.name": ["game"]}),
        (config("my_flow:flow"), {"workflow": ["flow"]}),
        (
            config("rlvr", **AGENT),
            {
                "workflow": ["run"],
                "rollout.agent.message_preprocessors": ["shorter"],
                "rollout.agent.prefix_matcher": ["same"],
            },
        ),
    ],
)
def test_each_workflow_has_the_functions_of_its_options(folder, found, expected):
    code = own_code(found)
    names = {option: [one.target.partition(":")[2] for one in functions] for option, functions in code.items()}
    assert names == expected
    check_code(found, code_fingerprints(code), "here")
    assert not sys.modules.keys() & FUNCTIONS.keys()


@pytest.mark.parametrize("changed", ["my_tools", "my_table"])
def test_another_file_of_a_function_is_refused(folder, changed):
    run = config("tools")
    before = code_fingerprints(own_code(run))
    (folder / "unused.py").write_text("")
    check_code(run, before, "a new collector")
    (folder / f"{changed}.py").write_text((folder / f"{changed}.py").read_text() + "# changed\n")
    with pytest.raises(
        ConfigError, match=r"^tools\.names: found .*'population' of my_tools, .* in a new collector, and"
    ):
        check_code(run, before, "a new collector")


GAME = """
class Length:
    def reset(self, record):
        return [{"role": "user", "content": record["question"]}]

    def step(self, message):
        return [], float(len(message["content"])), True


def build(options, seed):
    return Length()
"""


def test_a_run_resumes_with_the_file_of_its_environment_alone(run, folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = folder / "my_rounds.py"
    options = ("workflow=environment", "environment.name=my_rounds:build", "reward=null", "trainer.eval_every=0")
    file.write_text(GAME)
    run(*options, "trainer.max_steps=1")
    resumed = (*options, "trainer.resume=true", "trainer.max_steps=2")
    file.write_text(GAME + "# changed\n")
    with pytest.raises(
        ConfigError, match=r"(?s)workflow, environment\.name: found environment\.name 'my_rounds:build'.*=\[workflow\]"
    ):
        run(*resumed)
    assert rows(run(*resumed, "trainer.accept_changed=[workflow]"))[-1]["step"] == 2
