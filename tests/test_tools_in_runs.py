"""``tools`` and ``environment`` in real runs: the page's code, the numbers of one process, and what a model learns."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core import registry
from archon_core.contracts.tool_calls import ToolCall
from archon_rl.tools.source import tool_source
from archon_rl.tools.toolbox import ToolBox
from archon_train.run.metrics import read_metrics
from small_grpo_runs import small_run, train, train_file

CONFIGURATION = small_run("""
workflow: tools
tools: {tool_call_parser: toolformer, max_turns: 2}
data: {arithmetic: {max_operand: 3, operators: "*", tool_demonstrations: 1.0}}
actor:
  model_config: {hidden_size: 32, intermediate_size: 64, head_dim: 16}
warm_start: {steps: 60, batch_size: 12}
gconfig: {max_new_tokens: 24}
rollout: {backend: local}
rewards: {processes: 1}
trainer: {max_steps: 2}
""")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tools.md").read_text(encoding="utf-8")

NUMBERS = (
    "reward",
    "tokens",
    "loss",
    "gradient_norm",
    "workflow/turns",
    "workflow/tool_calls",
    "workflow/tool_failures",
)


def rows(run: Path) -> list[dict[str, float]]:
    return list(read_metrics(run / "metrics.jsonl"))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the modules that docs/tools.md shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tools, game = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_tools.py").write_text(tools)
    (tmp_path / "my_game.py").write_text(game)
    yield tmp_path
    for name in ("my_tools", "my_game"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(CONFIGURATION, tmp_path_factory.mktemp("alone"))


def test_a_run_calls_tools_and_counts_the_calls(alone: Path) -> None:
    steps = [row for row in rows(alone) if "workflow/turns" in row]
    assert len(steps) == 2
    for row in steps:
        assert 0 < row["workflow/tool_calls"] <= 1
        # With two turns at most, every turn after the first follows a call or a malformed one.
        assert row["workflow/turns"] - 1 == pytest.approx(row["workflow/tool_calls"], abs=0.5)


def test_the_tool_of_the_page_works(own: Path) -> None:
    box = ToolBox([tool_source("my_tools:population", registry())], processes=1, timeout=20, memory_mb=64, longest=100)
    try:
        function = box.schemas[0]["function"]
        assert function["parameters"]["properties"]["city"] == {"type": "string", "description": "Name of the city."}
        assert function["parameters"]["required"] == ["city"]
        assert asyncio.run(box.call(ToolCall("population", {"city": "Oslo"}))).text == "724290"
        assert asyncio.run(box.call(ToolCall("population", {"city": "Rome"}))).text == "Error: KeyError: ('Rome', 2025)"
    finally:
        box.close()
    assert "my_tools" not in sys.modules  # only the tool process imports it


def test_the_game_of_the_page_is_played_in_a_run(own: Path) -> None:
    options = ("workflow=environment", "environment.name=my_game:guessing", "environment.options={highest: 3}")
    rest = ("environment.max_turns=3", "tokenizer.kind=bpe", "tokenizer.vocab_size=300", "gconfig.max_new_tokens=2")
    extra = ("actor.model_config.max_position_embeddings=256", "warm_start.steps=0", "data.batch_size=2")
    folder = train(CONFIGURATION, own / "run", *options, *rest, *extra)
    steps = [row for row in rows(folder) if "workflow/turns" in row]
    assert len(steps) == 2
    assert all(1 <= row["workflow/turns"] <= 3 and 0 <= row["workflow/done"] <= 1 for row in steps)


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
@pytest.mark.parametrize(
    "options", [("actor.backend=archon:d2",), ("rollout.backend=served:d1",)], ids=["d2", "served:d1"]
)
def test_numbers_are_those_of_one_process(alone: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = train(CONFIGURATION, tmp_path / "run", *options)
    for row, other in zip(rows(found), rows(alone), strict=True):
        for name in (name for name in NUMBERS if name in other):
            assert row[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9), name
    weights, others = (load_file(run / "export/model.safetensors") for run in (found, alone))
    torch.testing.assert_close(weights, others, rtol=0, atol=1e-9)


@pytest.mark.examples
def test_a_model_learns_to_call_the_calculator(tmp_path: Path) -> None:
    """``examples/grpo_tools.yaml`` in a third of its steps: the warm start calls the tool now and then, GRPO mostly."""
    short = ("actor.backend=archon:d1", "cluster.n_gpus_per_node=1", "trainer.max_steps=10", "trainer.eval_size=60")
    given = (f"cluster.fileroot={tmp_path}", "trainer.verify_export=false", "trainer.eval_every=0", *short)
    train_file(ROOT / "examples/grpo_tools.yaml", *given)
    [metrics] = tmp_path.glob("*/*/metrics.jsonl")
    evaluations = [row for row in read_metrics(metrics) if "eval/reward" in row]
    before, after = evaluations[0], evaluations[-1]
    assert before["eval/tool_calls"] < 0.5
    assert after["eval/tool_calls"] > 0.7
    assert after["eval/reward"] > before["eval/reward"] + 0.4
