"""The tools around the benchmarks: the form of their results, the comparison with the baseline, and what they count.

No test here measures a time; `hatch run bench` does.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.intervals import Interval, busy, gaps, largest, report
from bench.limited import run_limited
from bench.records import Figure, Measurement, Result, from_json, merged, read_results, to_json
from bench.time_order import Row, compare_orders
from generated.performance import MEASURED, render_result

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "tooling/bench"
MACHINE = {"cpu": "a processor", "cores": 2, "torch": "2.13.0"}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts, which import their neighbours by bare names."""
    monkeypatch.syspath_prepend(str(BENCH))


def measured(name: str = "time", ratio: float = 2.0, **changes: object) -> Measurement:
    figures = {"archon": Figure(1.0, "s"), "other": Figure(ratio, "s")}
    return replace(Measurement(name, ratio, "higher", **figures, against="a rival", repetitions=5), **changes)


@pytest.mark.parametrize(
    ("ratio", "better", "bar", "passed"),
    [
        (1.2, "higher", 1.2, True),
        (1.1, "higher", 1.2, False),
        (1.1, "lower", 1.2, True),
        (1.3, "lower", 1.2, False),
        (math.nan, "higher", 1.2, False),
        (math.nan, "lower", 1.2, False),
        (0.1, "higher", None, True),
    ],
)
def test_a_ratio_is_judged_in_the_direction_of_its_bar(
    ratio: float, better: str, bar: float | None, passed: bool
) -> None:
    one = measured(ratio=ratio, better=better, bar=bar)
    assert one.passed is passed
    assert Result("head", "error", (one,)).judged().status == ("pass" if passed else "fail")


def test_results_are_the_same_after_writing_and_reading_also_without_a_finite_ratio() -> None:
    results = [
        Result("head", "fail", (measured(bar=3.0), measured("memory", math.inf)), MACHINE, 1.5, "missed: time"),
        Result("grpo", "skipped", message="found no TRL"),
    ]
    text = to_json(results)
    assert from_json(text, source="here") == results
    assert [row["passed"] for row in json.loads(text)["benches"][0]["measurements"]] == [False, True]


@pytest.mark.parametrize("text", ["{}", "[]", '{"benches": [{"bench": "head"}]}', "not JSON"])
def test_a_file_that_holds_no_results_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^some\.json: found no benchmark results"):
        from_json(text, source="some.json")


def test_new_results_replace_the_same_benchmark_and_leave_the_others() -> None:
    old = [Result("head", "pass", seconds=1.0), Result("moe", "pass", seconds=1.0)]
    new = [Result("plan", "pass"), Result("head", "pass", seconds=2.0)]
    assert [(one.bench, one.seconds) for one in merged(old, new)] == [("head", 2.0), ("moe", 1.0), ("plan", 0.0)]


@pytest.mark.usefixtures("flat")
def test_what_is_worse_by_more_than_15_per_cent_is_a_regression() -> None:
    from baseline import compare

    def found(before: Measurement, after: Measurement, machine: dict[str, object] = MACHINE) -> list[str]:
        old, new = Result("head", "pass", (before,), MACHINE), Result("head", "pass", (after,), machine)
        return [one.measurement.name for one in compare([new], [old]) if one.is_regression]

    higher, lower = measured(), measured(better="lower")
    assert found(higher, replace(higher, ratio=1.71)) == []
    assert found(higher, replace(higher, ratio=1.69)) == ["time"]
    assert found(higher, replace(higher, ratio=9.0)) == []
    assert found(lower, replace(lower, ratio=2.34)) == []
    assert found(lower, replace(lower, ratio=2.36)) == ["time"]
    assert found(lower, replace(lower, ratio=math.nan)) == ["time"]
    uncompared = replace(higher, ratio=0.1, compared=False)
    assert found(higher, uncompared) == []
    absolute = replace(higher, ratio=0.1, absolute=True)
    assert found(higher, absolute) == ["time"]
    assert found(higher, absolute, {**MACHINE, "cpu": "another"}) == []


@pytest.mark.usefixtures("flat")
def test_what_cannot_be_compared_is_named() -> None:
    from baseline import not_compared

    old = [Result("head", "pass", (measured("a"), measured("b")), MACHINE), Result("grpo", "pass", (), MACHINE)]
    new = [
        Result("head", "pass", (measured("b"), measured("c")), MACHINE),
        Result("grpo", "skipped", message="found no TRL"),
        Result("moe", "pass"),
    ]
    assert list(not_compared(new, old)) == [
        "head, a: in the baseline, not measured",
        "head, c: not in the baseline",
        "grpo: skipped: found no TRL",
        "moe: not in the baseline",
    ]


FAILING = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from records import Figure, Measurement
from report import Report
report = Report("failing", Path(sys.argv[2]))
report.add(Measurement("first", 2.0, "higher", Figure(1.0, "s"), Figure(2.0, "s"), "a rival", 5, bar={bar}))
{then}
sys.exit(report.finish())
"""


@pytest.mark.parametrize(
    ("then", "bar", "status", "message"),
    [
        ("", 1.5, "pass", ""),
        ("", 2.5, "fail", "missed: first: 1 s, a rival 2 s, ratio 2, bar >= 2.5"),
        ("report.fail('results differ')", 1.5, "fail", "results differ"),
        ("raise ZeroDivisionError", 1.5, "error", "its process ended with exit code 1\n"),
        ("import time; time.sleep(60)", 1.5, "timeout", "stopped after 3 s\n"),
    ],
)
@pytest.mark.usefixtures("flat")
def test_a_benchmark_that_fails_keeps_what_it_measured(
    tmp_path: Path, then: str, bar: float, status: str, message: str
) -> None:
    from benches import Bench
    from running import run_bench

    script = FAILING.format(folder=str(BENCH), then=then, bar=bar)
    (tmp_path / "failing.py").write_text(script, encoding="utf-8")
    limit = 3 if status == "timeout" else 60
    result = run_bench(Bench("failing", limit), tmp_path, quick=False, folder=tmp_path)
    assert (result.status, [one.name for one in result.measurements]) == (status, ["first"])
    assert result.message.startswith(message)
    assert result.machine["cores"] > 0


@pytest.mark.usefixtures("flat")
def test_a_benchmark_that_this_checkout_lacks_is_skipped(tmp_path: Path) -> None:
    from benches import Bench
    from running import run_bench

    assert run_bench(Bench("none", 1), tmp_path, quick=False, folder=tmp_path).status == "skipped"


def test_nothing_that_a_command_started_is_left_behind(tmp_path: Path) -> None:
    mark = f"child of {tmp_path}"
    child = f"import time; time.sleep(60); {mark!r}"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert run_limited([sys.executable, "-c", parent], tmp_path / "log", 0.5).status == "timeout"
    for _ in range(100):  # a killed process needs a moment to end
        if not (left := [command for command in running_commands() if mark in command]):
            break
        time.sleep(0.1)
    assert not left


def running_commands() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            yield file.read_bytes().decode(errors="replace")


@pytest.mark.usefixtures("flat")
def test_every_benchmark_exists_has_a_command_and_a_table_on_the_page() -> None:
    from benches import BENCHES, chosen

    names = [bench.name for bench in BENCHES]
    assert sorted(names) == sorted(MEASURED)
    assert [bench.name for bench in chosen(["moe", "head"])] == ["head", "moe"]
    with pytest.raises(ValueError, match="found --only nothing; allowed are startup"):
        chosen(["nothing"])
    assert {result.bench for result in read_results(BENCH / "baseline.json")} <= set(names)


@pytest.mark.usefixtures("flat")
def test_rough_ratios_do_not_become_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    from run import main

    with pytest.raises(SystemExit):
        main(["--quick", "--save-baseline"])
    assert "a baseline needs all repetitions" in capsys.readouterr().err


@pytest.mark.usefixtures("flat")
def test_the_baseline_changes_only_for_benchmarks_that_ended_in_order(tmp_path: Path) -> None:
    from records import Result as FlatResult
    from records import read_results as read_flat
    from records import to_json as to_flat
    from run import save_baseline

    file = tmp_path / "baseline.json"
    file.write_text(to_flat([FlatResult("head", "pass", seconds=1.0), FlatResult("moe", "pass")]), encoding="utf-8")
    ended = ("head", "fail"), ("moe", "timeout"), ("grpo", "skipped")
    save_baseline([FlatResult(name, status, seconds=2.0) for name, status in ended], file)
    assert [(one.bench, one.status, one.seconds) for one in read_flat(file)] == [
        ("head", "fail", 2.0),
        ("moe", "pass", 0.0),
    ]


def test_the_page_shows_missed_bars_details_and_the_machine() -> None:
    one = measured(ratio=1.0, bar=2.0, details={"phase": 0.5})
    assert render_result("head", Result("head", "fail", (one,), MACHINE)) == (
        "\n| measurement | Archon | other | ratio | bar |\n| --- | --- | --- | --- | --- |\n"
        "| time | 1 s | 1 s (a rival) | **1.00**, misses its bar | at least 2 |\n\n- time: phase 0.5\n\n"
        "*Two cores of a processor; torch 2.13.0.*\n\n"
    )
    assert "hatch run bench --only head" in render_result("head", None)


@pytest.mark.usefixtures("flat")
def test_phases_of_a_rank_begin_with_what_its_parent_did() -> None:
    from startup import phases_until_update

    def row(pid: int, phase: str, begin: float, end: float, inside: float = 0.0) -> dict[str, object]:
        return {"pid": pid, "phase": phase, "begin": begin, "end": end, "inside": inside}

    rows = [
        row(1, "configuration", 101.0, 102.0),
        row(2, "import torch", 104.0, 106.0),
        row(2, "configuration", 106.0, 107.0),
        row(2, "model", 108.0, 110.0, inside=0.5),
        row(2, "update", 111.0, 112.0),
        row(2, "update", 113.0, 114.0),
        row(3, "update", 111.0, 112.5),
    ]
    seconds, phases = phases_until_update(rows, started=100.0)
    assert seconds == 12.0
    assert phases == {
        "before this process": 4.0,
        "configuration": 1.0,
        "import torch": 2.0,
        "model": 1.5,
        "other work": 2.5,
        "update": 1.0,
        "times configuration": 2,
        "times plan": 0,
    }


def test_kernels_are_summed_by_name_and_gaps_are_between_all_of_them() -> None:
    kernels = [Interval("b", 10, 30), Interval("a", 0, 5), Interval("a", 25, 28), Interval("c", 40, 41)]
    assert largest(kernels) == [("b", 20, 1), ("a", 8, 2), ("c", 1, 1)]
    assert [(gap.begin, gap.length, gap.after, gap.before) for gap in gaps(kernels)] == [
        (5, 5, "a", "b"),
        (30, 10, "b", "c"),
    ]
    assert busy(kernels) == 26
    lines = report(kernels).splitlines()
    assert " ".join(lines[1].split()) == "0.020 ms 69.0% 1 calls b"
    assert " ".join(lines[5].split()) == "0.010 ms at 0.030 ms b -> c"
    assert busy([]) == 0


HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "omegaconf",
    "yaml",
    "archon_core.assembly",
    "archon_engine.engine",
)
"""What no listing needs."""


@pytest.mark.parametrize("command", ["--help", "plugins"])
def test_listings_import_nothing_heavy(command: str) -> None:
    code = f"import sys; sys.argv = ['archon', {command!r}]\nfrom archon_core.cli.main import main\n" + (
        "try:\n    main()\nfinally:\n    print('found', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stderr.rpartition("found ")[2].split()
    assert "archon_core.cli.main" in imported
    assert not set(HEAVY) & set(imported)


def test_importing_the_engine_brings_no_compiler_and_silu_no_library() -> None:
    # The optimizer imports torch._dynamo later; servers and forward passes have none.
    code = (
        "import sys, archon_engine.engine\nfrom archon_engine.nn.swiglu import SwiGLU\nSwiGLU(4, 4)\n"
        "print(*{'torch._dynamo', 'torch.distributed.pipelining', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def timed_rows(predicted: tuple[float, ...], *, disturbed: int, slower: float, apart: float) -> list[Row]:
    """Five layouts, each slower than the one before by ``apart``; some have one turn that is slower still."""
    times = [(1 + apart) ** place for place in range(5)]
    return [
        Row(f"layout {place}", (seconds, seconds * (1 + slower * (place < disturbed))), predicted[place])
        for place, seconds in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("predicted", "disturbed", "apart", "problems"),
    [
        ((1, 2, 3, 4, 5), 0, 0.2, []),
        # One disturbed layout has an order all the same.
        ((9, 2, 3, 4, 5), 1, 0.2, ["differs for"]),
        # Where most are disturbed, only large differences count.
        ((9, 2, 3, 4, 5), 5, 0.2, ["differs for"]),
        ((1, 2, 3, 4, 5), 5, 0.1, ["4 of 10 pairs have no order at a noise of 15%"]),
        ((5, 4, 3, 2, 1), 0, 0.001, ["10 of 10 pairs have no order at a noise of 3%"]),
    ],
)
def test_an_order_neither_passes_nor_fails_by_noise(
    predicted: tuple[float, ...], disturbed: int, apart: float, problems: list[str]
) -> None:
    rows = timed_rows(predicted, disturbed=disturbed, slower=0.8, apart=apart)
    found = compare_orders(rows).problems()
    assert len(found) == len(problems)
    assert all(expected in problem for expected, problem in zip(problems, found, strict=True))
