"""``archon report``: the steps of a run, and totals of asynchronous ones."""

from __future__ import annotations

import json
import re

import pytest
from made_runs import AHEAD
from rich.console import Console

from archon_core.errors import ConfigError
from archon_report.cli import report

STEP = {"reward": 0.5, "loss": -0.01, "time/step": 2.0, "tokens_per_second": 50.0, "tokens": 100}


@pytest.fixture
def printed(tmp_path, capsys):
    def run(*rows, last=20, as_json=False):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report([tmp_path], last=last, as_json=as_json)
        return capsys.readouterr()

    return run


@pytest.fixture
def show(printed):
    return lambda *rows, **options: printed(*rows, **options).out


def test_a_synchronous_run_has_no_columns_of_sampling_ahead(show):
    output = show({"step": 0, "eval/reward": 0.1}, {"step": 1, **STEP}, {"step": 2, **STEP, "eval/reward": 0.25})
    heading, first, second = [line.split() for line in output.splitlines()]
    assert heading == ["step", "reward", "loss", "seconds", "tokens/s", "held", "out"]
    assert first == ["1", "0.500", "-0.0100", "2.0", "50"]
    assert second == ["2", "0.500", "-0.0100", "2.0", "50", "0.250"]


def test_held_out_numbers_of_other_runs_have_columns_too(show):
    output = show({"step": 1, **STEP, "eval/reward_avg@4": 0.25}, {"step": 2, **STEP, "eval/loss": 2.0})
    heading, first, second = output.splitlines()
    assert heading.split()[-4:] == ["held", "out", "held-out", "loss"]
    assert first.split()[-1] == "0.250"
    assert second.split()[-1] == "2.0000"


def test_an_asynchronous_run_shows_queue_idle_time_and_totals(show):
    """The shares of a step count by its trained tokens: 40 and 120, whatever prompts and dropped groups have."""
    later = {"trained_tokens": 120, "staleness/0": 1.0, "staleness/1": 0.0, "stale_prompts": 0, "dropped/no_reward": 1}
    output = show({"step": 1, **STEP, **AHEAD}, {"step": 2, **STEP, **AHEAD, **later})
    lines = output.splitlines()
    assert lines[1].split() == ["1", "0.500", "-0.0100", "2.0", "50", "0.75", "3", "4", "0.5", "12%", "0.25"]
    assert lines[-3:] == [
        "trained tokens by staleness: 0: 81.2%, 1: 18.8%",
        "dropped groups: 3 no reward, 1 stale",
        "versions of the servers: 127.0.0.1:7 6",
    ]


def test_a_narrow_terminal_shows_the_columns_that_fit_and_names_the_others(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(Console, "is_terminal", True)
    output = printed({"step": 1, **STEP, **AHEAD, "eval/reward": 0.25})
    heading = re.sub(r"\x1b\[\d*m", "", output.out.splitlines()[0])
    assert heading.split()[:6] == ["step", "reward", "loss", "seconds", "tokens/s", "stale"]
    assert "held" in heading
    assert "running" not in heading
    assert "reward s, running, queue, idle, waited s: the terminal is too narrow" in output.err


def test_a_file_or_a_pipe_has_all_columns_and_a_line_per_step(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    output = printed({"step": 1, **STEP, **AHEAD, "eval/reward": 0.25})
    lines = output.out.splitlines()
    assert lines[0].split()[-9:] == ["running", "queue", "waited", "s", "idle", "reward", "s", "held", "out"]
    assert lines[1].split() == ["1", "0.500", "-0.0100", "2.0", "50", "0.75", "3", "4", "0.5", "12%", "0.25", "0.250"]
    assert "left out" not in output.err


def test_steps_that_left_out_every_group_have_no_shares(show):
    nothing = {"tokens": 0, "trained_tokens": 0, "staleness/0": 0.0, "staleness/1": 0.0}
    output = show({"step": 1, **STEP, **AHEAD}, {"step": 2, **STEP, **AHEAD, **nothing}, last=1)
    assert "trained tokens by staleness: none\n" in output


def test_the_last_steps_are_shown_and_json_has_all_metrics(show):
    rows = [{"step": step, **STEP, **AHEAD} for step in (1, 2, 3)]
    assert [line.split()[0] for line in show(*rows, last=2).splitlines()[1:3]] == ["2", "3"]
    assert json.loads(show(*rows, last=1, as_json=True)) == rows[2:]
    assert len(json.loads(show(*rows, last=0, as_json=True))) == 3


def test_a_run_without_a_step_says_so(show):
    assert show({"step": 0, "eval/reward": 0.1}).endswith("metrics.jsonl: no step is finished yet\n")


def test_wrong_input_is_refused(show, tmp_path):
    with pytest.raises(ConfigError, match=r"absent: found no such folder; allowed is the folder of a run"):
        report([tmp_path / "absent"])
    with pytest.raises(ConfigError, match=r"found no metrics\.jsonl and no config\.yaml; give the folder of a run"):
        report([tmp_path])
    (tmp_path / "one").mkdir()
    (tmp_path / "one/metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="give one of its runs: one"):
        report([tmp_path])
    with pytest.raises(ConfigError, match="found the same run twice"):
        report([tmp_path / "one", tmp_path / "one"])
    with pytest.raises(ConfigError, match=r"--last: found -1; allowed are numbers from 0"):
        show({"step": 1, **STEP}, last=-1)
