"""``archon watch``: waits for runs, notices resumptions, ends with the last run."""

from __future__ import annotations

import fcntl
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from made_runs import step_row, write_run
from rich.console import Console

from archon_core.errors import ConfigError
from archon_core.run_files.starts import Start, render_starts
from archon_report.run import read_run
from archon_report.watch_cli import follow, look, watch
from archon_report.watch_rows import draw_fitting
from archon_report.watch_view import Watched, draw, seconds_left, sparkline


def text_of(runs, width=120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw(runs, width))
    return console.file.getvalue()


def test_a_run_shows_its_numbers_and_the_time_left(tmp_path):
    rows = [step_row(1), step_row(2, **{"staleness": 1.5, "server_version/a:1": 4, "skipped_updates": 1})]
    folder = write_run(tmp_path / "demo" / "one", rows, config="trainer: {max_steps: 12}\n")
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [watched] = look([folder])
        text = text_of([watched], 80)
        assert watched.run is not None
        assert seconds_left(watched.run) == pytest.approx(20.0)
    for part in ("2/12", "0:00:20 left", "demo/one", "staleness", "▁█", "rollout 25%", "update 70%", "a:1 version 4"):
        assert part in text
    assert "updates were skipped, last at step 2" in text
    assert "running" in text


def test_a_panel_has_memory_held_out_rewards_of_several_samples_and_many_servers(tmp_path):
    servers = {f"server_version/a:{n}": 4 + n // 5 for n in range(6)}
    folder = write_run(tmp_path / "run", [step_row(1, **servers, **{"memory/peak_gb": 1.5, "eval/pass@8": 0.25})])
    words = " ".join(text_of(look([folder]), 80).split())
    for part in ("peak memory, GB 1.5", "held-out pass@8 0.25", "servers 6, versions 4 to 5"):
        assert part in words


def test_steps_that_a_profiler_slowed_do_not_count_for_the_time_left(tmp_path):
    rows = [step_row(1, profiled=1, **{"time/step": 100.0}), step_row(2)]
    folder = write_run(tmp_path / "run", rows, config="trainer: {max_steps: 12}\n")
    assert seconds_left(read_run(folder)) == pytest.approx(20.0)
    write_run(folder, rows[:1], config="trainer: {max_steps: 3}\n")
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "0:03:20 left, from profiled steps" in text_of(look([folder]), 80), "there are no others"


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / place / "demo" / "grpo") for place in "ab"]
    assert [watched.run.name for watched in look(folders)] == [str(folder) for folder in folders]


def test_the_time_left_of_epochs_comes_from_the_steps_that_the_trainer_counted(tmp_path):
    folder = write_run(tmp_path / "run", [step_row(1), step_row(2)], config="trainer: {max_steps: null}\n")

    def shown(*totals: int | None) -> str:
        starts = [Start("2026-01-01T00:00:00+00:00", total_steps=total) for total in totals]
        (folder / "starts.json").write_text(render_starts(starts))
        return " ".join(text_of(look([folder]), 80).split())

    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "2/12 0:00:20 left" in shown(12)
        assert "2/12 0:00:20 left" in shown(12, None), "a resumed run has not counted yet"
        assert "step 2 time left: no number of steps recorded" in shown(None)
        write_run(folder, [{"step": 0, "eval/reward": 0.1}], config="trainer: {max_steps: null}\n")
        assert "step 0 time left: known when training begins" in shown(None)
        write_run(folder, [], config="trainer: {max_steps: 3}\n")
        assert "0/3 time left: known after the first step" in shown(None)


def test_a_metric_that_is_not_finite_is_a_warning(tmp_path):
    [watched] = look([write_run(tmp_path / "run", [step_row(1), step_row(2, loss="NaN")])])
    assert "loss is not finite" in text_of([watched])
    assert re.search(r"loss +not finite ", text_of([watched])), "on one line"
    assert sparkline([1.0, math.nan, 3.0], 8) == "▁!█"
    assert sparkline([2.0, 2.0], 8) == "▁▁"
    assert sparkline([math.inf], 8) == "!"


def test_runs_stand_side_by_side_where_there_is_room(tmp_path):
    runs = look([write_run(tmp_path / name) for name in ("a", "b")])
    assert len(text_of(runs, 120).splitlines()) < len(text_of(runs, 60).splitlines())
    assert len(text_of(runs, 100).splitlines()[0].rstrip()) == 72, "one above the other, they have more room"


def test_runs_whose_panels_do_not_fit_the_screen_have_a_row_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = Console(file=io.StringIO(), width=80, height=20, force_terminal=True, color_system=None)
    high = Console(file=io.StringIO(), width=80, height=60, force_terminal=True, color_system=None)
    rows = [step_row(1), step_row(2, staleness=1.5)]
    folders = [write_run(Path("demo") / name, rows, config="trainer: {max_steps: 12}\n") for name in "ab"]
    with (folders[0] / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        runs = look([*folders, Path("late")])
    for console in (low, high):
        console.print(draw_fitting(runs, console))
    assert [line.split() for line in low.file.getvalue().splitlines()] == [
        ["run", "step", "reward", "loss", "tokens/s", "stale", "left"],
        ["demo/a", "2/12", "0.2", "0.5", "500", "1.5", "0:00:20"],
        ["demo/b", "2/12", "0.2", "0.5", "500", "1.5", "stopped"],
        ["late"],
        ["late:", "waiting", "for", "the", "run", "to", "start"],
    ]
    assert "gradient norm" in high.file.getvalue()


def test_the_rows_of_running_and_failed_runs_come_first_where_the_terminal_is_too_low(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = Console(file=io.StringIO(), width=80, height=7, force_terminal=True, color_system=None)
    run = look([write_run(Path("demo") / "one", [step_row(1)])])[0].run
    error = "actor.lr: found -1; " * 9
    states = ["finished"] * 20 + ["stopped", "running", "failed", "running"] + ["finished"] * 40
    runs = [
        Watched(Path(f"{n}"), replace(run, name=f"{kind}-{n}", held=kind == "running", starts=_starts(kind, error)))
        for n, kind in enumerate(states)
    ]
    low.print(draw_fitting([*runs, Watched(Path("late"))], low))
    assert [line.split()[0] for line in low.file.getvalue().splitlines()] == [
        "run",
        "failed-22",
        "running-21",
        "running-23",
        "stopped-20",
        "failed-22:",
        "and",
    ]
    assert low.file.getvalue().endswith("…\nand 61 more: 1 waiting, 60 finished\n")


def test_all_rows_stay_on_the_screen_when_the_last_run_has_ended(tmp_path):
    console = Console(file=io.StringIO(), width=200, height=7, force_terminal=True, color_system=None)
    folders = [write_run(tmp_path / f"run-{n}", [step_row(3)]) for n in range(9)]
    follow(folders, console, 1.0)
    before, _, after = console.file.getvalue().rpartition("and 4 more: 4 finished")
    assert "run-8" not in before
    assert [f"run-{n}" in after for n in range(9)] == [True] * 9


def _starts(kind: str, error: str) -> list[Start]:
    ended = kind in ("failed", "finished")
    return [Start("", ending=kind, error=error if kind == "failed" else "")] if ended else []


def test_a_resumed_run_says_which_steps_were_dropped(tmp_path):
    folder = write_run(tmp_path / "run", [step_row(step) for step in range(1, 6)])
    before = look([folder])
    write_run(folder, [step_row(step) for step in range(1, 4)])
    dropped = look([folder], before)
    assert "resumed: steps 4 to 5 were dropped" in text_of(dropped)
    assert "were dropped" in text_of(look([folder], dropped))
    write_run(folder, [step_row(step) for step in range(1, 5)])
    assert "were dropped" not in text_of(look([folder], dropped))


def test_the_view_waits_for_a_run_and_ends_with_it(tmp_path):
    folder = tmp_path / "demo" / "late"
    ended = Start("2026-01-01T00:00:00+00:00", ending="failed", error="actor.lr: found -1")
    seen = []

    def wait(seconds: float) -> None:
        assert seconds == 0.5
        seen.append(look([folder])[0].note)
        if len(seen) == 2:
            write_run(folder, [step_row(1)])
            (folder / "starts.json").write_text(render_starts([ended]))

    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    follow([folder], console, 0.5, wait)
    assert seen == ["waiting for the run to start"] * 2
    assert "failed after step 1: actor.lr: found -1" in console.file.getvalue()


def test_once_prints_the_state_and_says_by_its_exit_code_if_a_run_has_not_started(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    with pytest.raises(typer.Exit) as ended:
        watch([folder], once=True)
    assert ended.value.exit_code == 0
    with pytest.raises(typer.Exit) as ended:
        watch([folder, tmp_path / "absent"], once=True)
    assert ended.value.exit_code == 1
    assert "waiting for the run to start" in capsys.readouterr().out


def test_a_damaged_file_does_not_end_the_view(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('broken\n{"step": 2}\n')
    assert "cannot read metrics.jsonl, line 1: found 'broken'" in " ".join(text_of(look([folder])).split())
    assert "step 2" in " ".join(text_of(look([folder])).split()), "the rows around the line are shown"


def test_a_folder_of_runs_is_not_waited_for_without_a_word(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name)
    assert look([tmp_path])[0].note == "waiting for the run to start; there are runs in this folder: one, two"


def test_wrong_input_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: found a file; allowed is the folder of a run"):
        watch([tmp_path / "file"])
    with pytest.raises(ConfigError, match="--every: found 0"):
        watch([tmp_path], every=0)
