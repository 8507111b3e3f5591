"""``archon simulate``: closed forms, the collector's rules, times of runs, and bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from archon_core.cli.main import main
from archon_rl.simulation.event_loop import scaled_to_batch, simulate
from archon_rl.simulation.workload import Workload

EVEN = Workload(batch_size=12, group_seconds=2.0, train_seconds=3.0, concurrency=4, publish_seconds=0.5, spread=0.0)
"""Three waves of four groups: 6 s to sample a batch, 3.5 s to train and publish."""


def seconds(workload: Workload, staleness: int) -> float:
    return 1 / simulate(workload, staleness, 50).steps_per_second


def test_a_synchronous_step_samples_trains_and_publishes_in_turn() -> None:
    assert seconds(EVEN, 0) == pytest.approx(6.0 + 3.5)
    assert seconds(replace(EVEN, servers=3), 0) == pytest.approx(2.0 + 3.5)
    assert seconds(replace(EVEN, concurrency=5), 0) == pytest.approx(6.0 + 3.5), (
        "the last wave is as long as a full one"
    )


@pytest.mark.parametrize("train", [1.0, 5.5, 20.0])
def test_with_much_staleness_a_step_takes_as_long_as_the_slower_part(train: float) -> None:
    assert seconds(replace(EVEN, train_seconds=train), 8) == pytest.approx(max(6.0, train + 0.5))


@pytest.mark.parametrize("staleness", [1, 2, 3, 5, 9])
def test_enough_servers_wait_for_the_bound_alone(staleness: int) -> None:
    """A batch is on its way for sampling, training and publication, and staleness + 1 batches are at a time."""
    wide = replace(EVEN, group_seconds=12.0, concurrency=1000, max_concurrent_rollouts=1000)
    # Steps come in bursts of staleness + 1, of which the measured ones may cut the last.
    assert seconds(wide, staleness) == pytest.approx(max(3.5, (12.0 + 3.5) / (staleness + 1)), rel=0.02)


def test_the_limit_names_what_is_never_idle() -> None:
    assert simulate(EVEN, 0, 50).limit == "staleness"
    assert simulate(EVEN, 8, 50).limit == "sampling"
    assert simulate(replace(EVEN, train_seconds=9.0), 8, 50).limit == "training"


def test_shares_of_time_add_up() -> None:
    forecast = simulate(EVEN, 0, 50)
    assert forecast.waits == pytest.approx(6.0 / 9.5)
    assert forecast.busy == pytest.approx(6.0 / 9.5)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_group_is_staler_than_the_bound_and_training_that_never_waits_reaches_it(staleness: int) -> None:
    forecast = simulate(replace(EVEN, train_seconds=30.0, spread=0.7), staleness, 50)
    assert forecast.max_staleness == staleness
    assert forecast.mean_staleness <= staleness


def test_rejected_groups_are_sampled_in_addition() -> None:
    """A step of training that waits for sampling alone samples batch_size / (1 - rejected) groups."""
    busy = replace(EVEN, rejected=0.5, train_seconds=0.1, publish_seconds=0.0, max_rounds=1000, seed=3)
    assert seconds(busy, 8) == pytest.approx(6.0 / 0.5, rel=0.1)


def test_a_queue_of_one_batch_leaves_nothing_to_sample_ahead() -> None:
    """The next batch starts when the trainer takes the last one: both parts overlap, one batch at a time."""
    narrow = replace(EVEN, queue_size=12)
    assert seconds(narrow, 8) == pytest.approx(max(6.0, 3.5))
    assert seconds(replace(narrow, train_seconds=9.0), 8) == pytest.approx(9.5)
    assert simulate(narrow, 8, 50).max_staleness == 1


def test_times_of_groups_have_their_mean_and_spread() -> None:
    many = [replace(EVEN, spread=0.8).seconds_of(group) for group in range(20_000)]
    average = sum(many) / len(many)
    deviation = math.sqrt(sum((one - average) ** 2 for one in many) / len(many))
    assert average == pytest.approx(2.0, rel=0.03)
    assert deviation / average == pytest.approx(0.8, rel=0.06)


def test_the_tail_of_the_times_delays_a_synchronous_batch_and_hardly_an_asynchronous_one() -> None:
    uneven = replace(EVEN, spread=1.0)
    assert seconds(uneven, 0) > 1.1 * seconds(EVEN, 0)
    assert seconds(uneven, 8) == pytest.approx(seconds(EVEN, 8), rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_scaling_gives_a_batch_its_time(spread: float) -> None:
    scaled = scaled_to_batch(replace(EVEN, spread=spread, rejected=0.2), 7.0, 50)
    forecast = simulate(scaled, 0, 50)
    assert forecast.waits / forecast.steps_per_second == pytest.approx(7.0)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, " ".join(err.split())


TIMES = ("--batch-size=12", "--group-seconds=2", "--train-seconds=3", "--concurrency=4", "--spread=0")


def test_the_command_compares_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *TIMES, "--publish-seconds=0.5", "--staleness=8,0")
    assert code == 0
    assert "12 groups per step, 4 sampled at a time: 6 s for a batch; 3.5 s to train and publish" in out
    assert [line.split()[:4] for line in out.splitlines() if line[:1].isdigit()][1:] == [
        ["0", "0.105", "1.00", "9.5"],
        ["8", "0.167", "1.58", "6"],
    ]
    code, out, _ = run(capsys, *TIMES, "--publish-seconds=0.5", "--staleness=1", "--json")
    found = json.loads(out)
    assert found["workload"]["group_seconds"] == 2
    assert found["measured"] is None
    [forecast] = found["forecasts"]
    assert forecast["speedup"] == pytest.approx(9.5 / 6)
    assert forecast["limit"] == "sampling"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found no --batch-size, --group-seconds, --train-seconds, --concurrency"),
        (TIMES[1:], "found no --batch-size; allowed are numbers above 0; give it"),
        ((*TIMES, "--batch-size=0"), "--batch-size: found 0; allowed are numbers from 1"),
        ((*TIMES, "--spread=-1"), "--spread: found -1.0; allowed are numbers from 0"),
        ((*TIMES, "--train-seconds=nan"), "--train-seconds: found nan; allowed are numbers above 0"),
        ((*TIMES, "--rejected=1"), "--rejected: found 1.0; allowed are numbers from 0 below 1"),
        ((*TIMES, "--queue-size=11"), "--queue-size: found 11; a step takes 12 groups"),
        ((*TIMES, "--staleness=1,two"), "--staleness: found '1,two'; allowed are numbers from 0 to 64"),
        ((*TIMES, "--staleness=-1"), "--staleness: found '-1'"),
        ((*TIMES, "--batch-size=1000000"), "allowed are 1,000,000; give fewer --steps"),
        (("--from=nowhere",), "--from: found no config.yaml in 'nowhere'"),
    ],
)
def test_bad_input_is_explained(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
