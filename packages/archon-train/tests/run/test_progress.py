"""The progress line: what it says, and how it is shown with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from archon_train.run.progress import NoProgress, Progress, format_step


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def run(progress: Progress, clock: Clock, steps: range, seconds: float = 2.0) -> None:
    for step in steps:
        clock.seconds += seconds
        progress.update(step, n_tokens=5000, reward=0.5, loss=1.23456)


def test_a_step_says_reward_loss_speed_and_time_left():
    line = format_step(12, 100, {"reward": 0.5312, "loss": 1.23456}, tokens_per_second=12345.6, seconds_left=83.4)
    assert line == "step 12/100  reward 0.5312  loss 1.235  12.3k tokens/s  0:01:23 left"


def test_what_is_not_known_is_left_out():
    assert format_step(3, None, {}) == "step 3"
    assert format_step(3, 9, {"loss": 0.1}, label="warm start", tokens_per_second=80.4) == (
        "warm start 3/9  loss 0.1  80 tokens/s"
    )


def test_without_a_terminal_every_step_is_a_plain_line(clock):
    out = console(terminal=False)
    with Progress(out, clock=clock) as progress:
        progress.start(10)
        run(progress, clock, range(1, 3))
    assert out.file.getvalue().splitlines() == [
        "step 1/10  reward 0.5  loss 1.235  2.5k tokens/s  0:00:18 left",
        "step 2/10  reward 0.5  loss 1.235  2.5k tokens/s  0:00:16 left",
    ]


def test_without_a_terminal_lines_can_be_thinned_out_but_the_last_step_has_one(clock):
    out = console(terminal=False)
    with Progress(out, every=4, clock=clock) as progress:
        progress.start(10)
        run(progress, clock, range(1, 11))
    assert [line.split()[1] for line in out.file.getvalue().splitlines()] == ["4/10", "8/10", "10/10"]


def test_the_time_left_follows_the_recent_steps_not_a_slow_first_one(clock):
    out = console(terminal=False)
    with Progress(out, clock=clock) as progress:
        progress.start(100)
        run(progress, clock, range(1, 2), seconds=600.0)
        run(progress, clock, range(2, 51), seconds=1.0)
    assert out.file.getvalue().splitlines()[-1].endswith("0:00:50 left")


def test_the_steps_before_a_resume_do_not_count_into_the_time(clock):
    out = console(terminal=False)
    with Progress(out, clock=clock) as progress:
        progress.start(100, completed=90)
        run(progress, clock, range(91, 92), seconds=3.0)
    assert out.file.getvalue().splitlines()[-1].endswith("0:00:27 left")


def test_a_second_part_of_a_run_counts_for_itself(clock):
    out = console(terminal=False)
    with Progress(out, clock=clock) as progress:
        progress.start(5, label="warm start")
        run(progress, clock, range(1, 6), seconds=10.0)
        progress.start(20)
        run(progress, clock, range(1, 2), seconds=1.0)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("warm start 1/5")
    assert lines[-1].startswith("step 1/20")
    assert lines[-1].endswith("0:00:19 left")


def test_in_a_terminal_one_line_is_redrawn(clock):
    out = console(terminal=True)
    with Progress(out, clock=clock) as progress:
        progress.start(3)
        run(progress, clock, range(1, 4))
        progress.note("a [remark]")
    text = out.file.getvalue()
    assert "step 3/3  reward 0.5" in text
    assert "a [remark]" in text
    assert "\x1b[2K" in text  # erase line: the earlier one was overwritten


def test_the_progress_of_other_ranks_shows_nothing(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    with NoProgress() as progress:
        progress.start(3)
        progress.note("a note")
        progress.update(1, n_tokens=10, loss=0.5)
        progress.update(3)
    assert capsys.readouterr() == ("", "")
