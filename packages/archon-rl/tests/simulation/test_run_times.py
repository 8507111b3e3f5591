"""``archon simulate --from``: times of a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archon_core.cli.main import main
from archon_core.errors import ConfigError, DataError
from archon_rl.simulation.run_times import read_run_times

CONFIGURATION = """
experiment_name: a
trial_name: b
algorithm: grpo
reward: arithmetic
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 12}
actor: {path: model}
gconfig: {n_samples: 8}
rollout: {backend: BACKEND, max_batch_size: 32, max_head_offpolicyness: 2, queue_size: 99}
"""

STEP = {"time/rollout": 6.2, "time/update": 3.0, "time/publish": 0.5, "time/step": 9.7}
OF_A_COLLECTOR = {
    "staleness": 1.0,
    "collector/busy_seconds": 5.0,
    "collector/finished": 10,
    "collector/waited_seconds": 6.0,
}


def write_run(folder: Path, *rows: dict[str, Any], backend: str = "served:d2") -> Path:
    (folder / "config.yaml").write_text(CONFIGURATION.replace("BACKEND", backend), encoding="utf-8")
    lines = [json.dumps({"step": number, **row}) for number, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_a_collector_reports_how_long_it_sampled(tmp_path: Path) -> None:
    slow = {name: 100.0 * value for name, value in STEP.items()}
    times = read_run_times(write_run(tmp_path, slow | OF_A_COLLECTOR, STEP | OF_A_COLLECTOR))
    assert times.sampling_seconds == pytest.approx(6.0), "12 groups at the rate of 10 in 5 s"
    assert times.options["train_seconds"] == pytest.approx(9.7 - 6.0 - 0.5), "the trainer waited for 6 s"
    assert times.options["publish_seconds"] == pytest.approx(0.5)
    assert times.options["rejected"] == 0
    assert (times.options["servers"], times.options["concurrency"]) == (2, 4)
    assert (times.options["batch_size"], times.options["queue_size"]) == (12, 99)
    assert times.steps_per_second == pytest.approx(1 / 9.7), "without the first step, which is slow"
    assert times.staleness == 2


def test_groups_that_were_left_out_count_as_sampled(tmp_path: Path) -> None:
    row = STEP | OF_A_COLLECTOR | {"prompts": 16, "rejected_prompts": 4}
    times = read_run_times(write_run(tmp_path, row, row))
    assert times.options["rejected"] == pytest.approx(0.25)
    assert times.sampling_seconds == pytest.approx(8.0), "16 groups at the rate of 10 in 5 s"


def test_without_a_collector_the_trainer_waits_for_all_sampling(tmp_path: Path) -> None:
    row = STEP | {"time/reward": 0.3}
    times = read_run_times(write_run(tmp_path, row, row, backend="local"))
    assert times.sampling_seconds == pytest.approx(6.5)
    assert times.options["train_seconds"] == pytest.approx(9.7 - 6.5 - 0.5)
    assert (times.options["servers"], times.options["concurrency"]) == (1, 4)


def test_a_synchronous_run_is_predicted_to_take_as_long_as_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, *[STEP | OF_A_COLLECTOR] * 3)
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--from", str(folder), "--staleness=0", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert 1 / found["forecasts"][0]["steps_per_second"] == pytest.approx(9.7, rel=0.01)
    assert found["measured"] == {"staleness": 2, "steps_per_second": pytest.approx(1 / 9.7)}


def test_given_options_describe_another_run_with_the_groups_of_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, *[STEP | OF_A_COLLECTOR] * 3)
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--from", str(folder), "--spread=0", "--servers=1", "--staleness=0", "--json"])
    assert not ended.value.code
    [forecast] = json.loads(capsys.readouterr().out)["forecasts"]
    # 12 groups on 8 places are two waves, on 4 places three.
    assert 1 / forecast["steps_per_second"] == pytest.approx(6.0 * 3 / 2 + 3.7)


def test_servers_of_another_kind_need_their_concurrency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, *[STEP | OF_A_COLLECTOR] * 2, backend="vllm:d2")
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--from", str(folder)])
    assert ended.value.code == 2
    assert "found no --concurrency, nor do the metrics of the run contain it" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_without_steps_or_without_the_times_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no step after the first in .*metrics\.jsonl"):
        read_run_times(write_run(tmp_path, STEP))
    with pytest.raises(DataError, match="found no 'collector/finished' in the row of a step"):
        read_run_times(write_run(tmp_path, STEP, STEP | {"staleness": 0.0}))
