"""``metrics.jsonl``: valid JSON, flushed rows, and a resumed run that reads as one; loggers that fail are left out."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archon_core.errors import DataError
from archon_train.run.folder import RunFolder
from archon_train.run.metrics import MetricsLog, NoMetrics, read_metrics


@pytest.fixture
def folder(tmp_path):
    return RunFolder.open(tmp_path, "e", "t")


def open_log(folder, resume_step=None):
    return MetricsLog(folder, resume_step=resume_step)


class TestRows:
    def test_a_row_is_on_disk_as_soon_as_it_is_logged(self, folder):
        with open_log(folder) as log:
            log.log(1, {"loss": 0.5, "n_tokens": 12, "skipped": True})
            assert folder.metrics.read_text() == '{"step": 1, "loss": 0.5, "n_tokens": 12, "skipped": 1}\n'

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "step"), st.floats() | st.integers()))
    def test_numbers_come_back_as_they_were_logged(self, folder, values):
        with open_log(folder) as log:
            log.log(3, values)
        (row,) = read_metrics(folder.metrics)
        assert row.pop("step") == 3
        assert row.keys() == values.keys()
        for name, value in values.items():
            assert row[name] == value or (math.isnan(row[name]) and math.isnan(value))

    def test_what_json_has_no_number_for_is_a_string_that_every_reader_accepts(self, folder):
        def refuse(constant):
            raise AssertionError(constant)

        with open_log(folder) as log:
            log.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
        row = json.loads(folder.metrics.read_text(), parse_constant=refuse)
        assert row == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}

    def test_scalars_of_numpy_and_torch_are_numbers(self, folder):
        import numpy
        import torch

        with open_log(folder) as log:
            log.log(1, {"a": numpy.float32(0.5), "b": torch.tensor(2), "c": numpy.int64(3)})
        assert read_metrics(folder.metrics) == [{"step": 1, "a": 0.5, "b": 2, "c": 3}]

    @pytest.mark.parametrize("value", ["0.5", None, [0.5], 1j])
    def test_what_is_not_a_number_is_refused_by_name(self, folder, value):
        with open_log(folder) as log, pytest.raises(TypeError, match="metrics: loss is"):
            log.log(1, {"loss": value})
        assert read_metrics(folder.metrics) == []

    def test_a_metric_cannot_be_called_step(self, folder):
        with open_log(folder) as log, pytest.raises(TypeError, match="'step'"):
            log.log(1, {"step": 2.0})


class TestResuming:
    def test_rows_after_the_checkpoint_are_dropped(self, folder):
        with open_log(folder) as log:
            for step in range(1, 6):
                log.log(step, {"loss": float(step)})
        with open_log(folder, resume_step=3) as log:
            log.log(4, {"loss": 40.0})
        assert [(row["step"], row["loss"]) for row in read_metrics(folder.metrics)] == [
            (1, 1.0),
            (2, 2.0),
            (3, 3.0),
            (4, 40.0),
        ]

    def test_a_run_that_begins_anew_keeps_none(self, folder):
        with open_log(folder) as log:
            log.log(0, {"reward": 0.1})
        with open_log(folder):
            pass
        assert read_metrics(folder.metrics) == []

    def test_a_line_that_a_crash_cut_off_is_passed_over(self, folder):
        folder.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
        with open_log(folder, resume_step=2) as log:
            log.log(2, {"loss": 2.0})
        assert [row["step"] for row in read_metrics(folder.metrics)] == [1, 2]

    @pytest.mark.parametrize(
        "line", ["not json", "[1]", '{"loss": 1.0}', '{"step": "one"}', '{"step": 2, "loss": null}']
    )
    def test_a_damaged_line_is_an_error_with_its_number(self, folder, line):
        folder.metrics.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
            open_log(folder, resume_step=2)


class Recorder:
    """A logger that raises at one step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.is_closed = fails_at, False

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self.fails_at:
            raise OSError("no network")
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def test_loggers_get_every_row_and_one_that_fails_is_left_out(folder):
    notes: list[str] = []
    good, bad = Recorder(), Recorder(fails_at=2)
    with MetricsLog(folder, resume_step=None, loggers={"good": good, "bad": bad}, note=notes.append) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step), "skipped": False})
    assert good.rows == [(step, {"loss": float(step), "skipped": 0}) for step in (1, 2, 3)]
    assert bad.rows == [(1, {"loss": 1.0, "skipped": 0})]
    assert (good.is_closed, bad.is_closed) == (True, False)
    assert notes == ["bad failed (OSError: no network) and gets no more metrics; metrics.jsonl has all"]
    assert len(read_metrics(folder.metrics)) == 3


def test_the_metrics_of_other_ranks_write_nothing(folder):
    before = sorted(folder.path.iterdir())
    with NoMetrics() as metrics:
        metrics.log(1, {"loss": 0.5})
    assert sorted(folder.path.iterdir()) == before
