"""``multi_turn`` and the page's own workflow in real runs: the numbers of one process, with and without servers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.cli.main import main
from archon_train.run.metrics import read_metrics
from small_grpo_runs import small_run, train

CONFIGURATION = small_run("""
workflow: multi_turn
multi_turn: {max_turns: 2, turn_discount: 0.5, feedback: "={prompt}"}
data: {validation_size: 4, arithmetic: {max_operand: 9}}
actor: {gae_timestep_unit: turn, discount: 0.9}
warm_start: {steps: 20, batch_size: 16}
gconfig: {max_new_tokens: 4}
rollout: {backend: local}
rewards: {processes: 1}
trainer: {max_steps: 3}
""")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/workflows.md").read_text(encoding="utf-8")

NUMBERS = (
    "reward",
    "tokens",
    "loss",
    "gradient_norm",
    "workflow/turns",
    "workflow/hinted",
    "workflow/solved_by_turn_2",
)


def rows(run: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row or "eval/reward" in row]


def assert_equal_runs(found: Path, expected: Path) -> None:
    for row, other in zip(rows(found), rows(expected), strict=True):
        for name in [name for name in (*NUMBERS, "eval/reward", "eval/turns") if name in other]:
            assert row[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9), name
    weights, others = (load_file(run / "export/model.safetensors") for run in (found, expected))
    torch.testing.assert_close(weights, others, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train(CONFIGURATION, tmp_path_factory.mktemp("alone"))
    assert all(1 < row["workflow/turns"] <= 2 for row in rows(run) if "loss" in row)
    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the workflow that docs/workflows.md shows, and a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_workflows.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    (tmp_path / "run.yaml").write_text(CONFIGURATION)
    yield tmp_path
    sys.modules.pop("my_workflows", None)


def test_the_pages_dry_run_accepts_its_workflow_without_importing_it(own, capsys):
    [command] = re.findall(r"^archon (train .*my_workflows:hints --dry-run)$", PAGE, re.MULTILINE)
    (own / "my_workflows.py").write_text("raise SystemExit\n" + (own / "my_workflows.py").read_text())
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert not ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_workflow:hints", "workflow: found no my_workflow.py in"),
        ("my_workflows:hint", "workflow: found no 'hint' in"),
        ("multi_turns", "multi_turn"),
    ],
)
def test_a_dry_run_names_a_workflow_that_does_not_exist(own, capsys, name, message):
    with pytest.raises(SystemExit) as ended:
        main(["train", "run.yaml", f"workflow={name}", "--dry-run"])
    assert ended.value.code
    assert message in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
def test_the_pages_workflow_gives_the_same_numbers_with_servers(own):
    options = ("workflow=my_workflows:hints", "trainer.max_steps=2")
    here = train(CONFIGURATION, own / "local", *options)
    assert all(0 < row["workflow/hinted"] <= 1 for row in rows(here) if "loss" in row)
    assert_equal_runs(train(CONFIGURATION, own / "served", *options, "rollout.backend=served:d1"), here)


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
def test_servers_give_the_numbers_of_one_process(alone, tmp_path):
    run = train(CONFIGURATION, tmp_path, "rollout.backend=served:d1")
    assert_equal_runs(run, alone)
    assert {row["staleness_max"] for row in rows(run) if "loss" in row} == {0}


@pytest.mark.wide
@pytest.mark.usefixtures("by_forks")
@pytest.mark.parametrize("layout", ["archon:d2", "archon:t2"])
def test_layouts_give_the_numbers_of_one_process(alone, tmp_path, layout):
    assert_equal_runs(train(CONFIGURATION, tmp_path, f"actor.backend={layout}"), alone)


@pytest.mark.examples
def test_a_model_learns_to_correct_its_answers(tmp_path):
    """The whole example of two turns: about three minutes on two cores."""
    with pytest.raises(SystemExit) as end:
        main(["train", str(ROOT / "examples/grpo_two_turns.yaml"), f"cluster.fileroot={tmp_path}"])
    assert not end.value.code
    found = [row for row in read_metrics(tmp_path / "arithmetic/two_turns/metrics.jsonl") if "eval/reward" in row]

    def corrected(row: dict[str, float]) -> float:
        """Share of the wrong answers of turn 1 that turn 2 corrects."""
        first, second = row["eval/solved_by_turn_1"], row["eval/solved_by_turn_2"]
        return (second - first) / (1 - first)

    assert found[-1]["eval/solved_by_turn_1"] >= found[0]["eval/solved_by_turn_1"] + 0.2
    assert corrected(found[0]) <= 0.1
    assert corrected(found[-1]) >= 0.2
