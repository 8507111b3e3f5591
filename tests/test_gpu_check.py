"""The checks for machines with a GPU, on the CPU: the same code in small, and what the command makes of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from archon_core.plugins.discovery import discover, distribution_name, distribution_version
from archon_engine.nn.attention_backends import sdpa
from gpu import apart, checkout, command
from gpu.groups import GROUPS, START_UP, TIME_LIMIT, Group, ends_of, time_factor
from gpu.journal import close_running, read_journal, run_checks, unfinished_checks
from gpu.numerics import attention, engine, ranks
from gpu.numerics.oracle import compute_in
from gpu.records import Check, Context, Outcome, Record, Skipped, is_wanted
from gpu.speed import flops, shapes
from gpu.table import as_json, render
from gpu.tracing.step import intervals_of
from workspace import find_packages

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tooling/gpu/check.py"
PROCESSES_OF_THEIR_OWN = ("numbers.ranks",)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    work = tmp_path_factory.mktemp("gpu-check")
    compute_in(str(work), "cpu")
    return Context("cpu", work)


@pytest.fixture
def eager() -> Iterator[None]:
    """Code that asks for compilation runs without: the compiler is not what is tested here, and takes minutes."""
    with torch.compiler.set_stance("force_eager"):
        yield


SLOW = ("numbers.state", "numbers.options")
GPU_ONLY = ("numbers.flex",)


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, id=group.name, marks=[pytest.mark.wide] * (group.name in SLOW))
        for group in GROUPS
        if group.name not in PROCESSES_OF_THEIR_OWN
    ],
)
@pytest.mark.usefixtures("eager")
def test_every_check_of_the_group_passes_on_the_cpu_or_names_the_gpu_that_it_needs(
    group: Group, context: Context, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    # Compiled blocks would run as the eager ones do.
    checks = [check for check in group.checks(context) if "compiled" not in check.name]
    run_checks(group.name, checks, journal, ())
    records = read_journal(group.name, journal, end=None, reason="")
    troubles = [r for r in records if r.status != "pass" and not (r.status == "skipped" and "CUDA" in r.message)]
    assert not troubles, render(troubles)
    assert group.name in GPU_ONLY or any(record.status == "pass" for record in records)


def test_plugins_of_a_checkout_are_found_without_an_installation(tmp_path: Path) -> None:
    checkout.write_metadata(tmp_path)
    found = discover([str(tmp_path)])
    expected = {
        (package.name, str(package.version), name, target)
        for package in find_packages().values()
        for name, target in package.project.get("entry-points", {}).get("archon", {}).items()
    }
    assert not found.unreadable
    assert {
        (distribution_name(point), distribution_version(point), point.name, point.value) for point in found.entry_points
    } == expected


def test_what_checks_need_is_declared_by_the_packages_that_they_run() -> None:
    declared: set[str] = set()
    for package in find_packages().values():
        declared |= {requirement.name for requirement in package.requirements}
    assert set(checkout.NEEDED) <= declared


def test_a_check_passes_fails_errs_or_is_skipped_and_the_others_run_on(tmp_path: Path) -> None:
    def broken() -> Outcome:
        raise ZeroDivisionError("no layers")

    def impossible() -> Outcome:
        raise Skipped("it needs a CUDA device")

    checks = [
        Check("broken", broken),
        Check("impossible", impossible),
        Check("far", lambda: Outcome({"loss": 2e-4, "norm": 0.0}, {"loss": 1e-4, "norm": 1e-4})),
        Check("nan", lambda: Outcome({"loss": float("nan")}, {"loss": 1e-4})),
        Check("slow", lambda: Outcome({"mfu": 0.4}, goals={"mfu": 0.5})),
    ]
    run_checks("numbers.some", checks, tmp_path / "journal", ())
    records = {
        r.name.partition("/")[2]: r for r in read_journal("numbers.some", tmp_path / "journal", end=None, reason="")
    }
    assert {name: record.status for name, record in records.items()} == {
        "broken": "error",
        "impossible": "skipped",
        "far": "fail",
        "nan": "fail",
        "slow": "pass",
    }
    assert records["broken"].message.startswith("ZeroDivisionError: no layers\n")
    assert records["far"].message == "above the bound: loss"
    assert records["slow"].message == "below the goal: mfu"
    lines = render(list(records.values())).splitlines()
    assert " ".join(lines[2].split()) == (
        "fail numbers.some/far 0.0 s loss 2.0e-04 (at most 1.0e-04) norm 0 (at most 1.0e-04) above the bound: loss"
    )
    assert "loss nan (at most 1.0e-04)" in lines[3]
    assert "mfu 0.4 (goal 0.5)" in lines[4]
    assert lines[-1] == "1 error, 1 skipped, 2 fail, 1 pass"
    # Readers of JSON other than Python's know no NaN.
    content = json.dumps(as_json({}, list(records.values()), 1.0), allow_nan=False)
    assert json.loads(content)["checks"][3]["measured"] == {"loss": "nan"}


@pytest.mark.parametrize("end", ["timeout", "error"])
def test_a_process_that_is_stopped_loses_no_check_that_had_ended(tmp_path: Path, end: str) -> None:
    journal = tmp_path / "journal"
    done = {"record": {"name": "speed.some/first", "status": "pass", "measured": {"mfu": 0.5}}}
    lines = [
        {"plan": [f"speed.some/{name}" for name in ("first", "second", "third")]},
        done,
        {"begun": "speed.some/second"},
    ]
    journal.write_text(
        "\n".join(json.dumps(line) for line in lines) + '\n{"record": {"name": "speed.so', encoding="utf-8"
    )
    records = read_journal("speed.some", journal, end=end, reason="stopped after 60 s")
    assert [(r.name, r.status, r.message) for r in records] == [
        ("speed.some/first", "pass", ""),
        ("speed.some/second", end, "stopped after 60 s"),
        ("speed.some/third", end, "not reached: stopped after 60 s"),
    ]


def test_a_process_that_ends_before_its_first_check_is_a_record_of_its_group(tmp_path: Path) -> None:
    [record] = read_journal("speed.some", tmp_path / "none", end="error", reason="exit code 1")
    assert record == Record("speed.some", "error", message="exit code 1")


def test_patterns_choose_checks() -> None:
    assert is_wanted("numbers.engine/qwen3-fp32", ())
    assert is_wanted("numbers.engine/qwen3-fp32", ("speed.*", "numbers.engine/qwen3-*"))
    assert not is_wanted("numbers.engine/qwen3_moe-fp32", ("numbers.engine/qwen3-*",))


def test_operations_per_token_are_those_that_torch_counts_in_transformers() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config, workload = shapes.dense("cpu")
    model = Qwen3ForCausalLM(Qwen3Config(**{**config, "attn_implementation": "sdpa"}))
    ids = torch.randint(0, config["vocab_size"], (workload.sequences, workload.length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    # torch does not count attention on a CPU. Ours: two products with length / 2 keys each, and twice that backward.
    heads = config["num_hidden_layers"] * config["num_attention_heads"]
    attention = 3 * heads * (2 * 2 * config["head_dim"] * workload.length / 2)
    linear = (flops.per_token(config, workload.length) - attention) * workload.tokens
    assert linear == counter.get_total_flops()


def test_experts_count_as_many_operations_as_a_token_uses() -> None:
    config = {**shapes.QWEN3_30B_A3B}
    # Projections of 32 + 4 + 4 + 32 heads, 8 of 128 experts with three matrices each, and a router.
    weights = 48 * (2048 * 72 * 128 + 8 * 3 * 2048 * 768 + 2048 * 128) + 2048 * 151_936
    assert flops.per_token(config, 4096) == 6 * weights + 6 * 48 * 32 * 128 * 4096
    assert 3.0e9 < weights < 3.4e9  # what gives the model its name


@pytest.mark.parametrize(("gib", "layers"), [(78, 4), (139, 8), (24, 1)])
def test_as_many_layers_with_experts_are_taken_as_fit(gib: int, layers: int) -> None:
    assert shapes.layers_that_fit(shapes.QWEN3_30B_A3B, gib * 2**30) == layers


def run_command(*arguments: str, limit: float = 600) -> subprocess.CompletedProcess[str]:
    """From another folder, without the test's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--cpu", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        timeout=limit,
    )


@pytest.mark.wide  # three processes that import torch
def test_the_command_writes_json_and_a_table(tmp_path: Path) -> None:
    done = run_command("--json", str(tmp_path / "out.json"), "--only", "numbers.kernels/experts-*-fp32-some")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["machine"]["torch"] == torch.__version__
    assert [(check["name"], check["status"]) for check in result["checks"]] == [
        ("numbers.kernels/experts-loop-fp32-some", "pass"),
        ("numbers.kernels/experts-grouped_mm-fp32-some", "pass"),
    ]
    assert set(result["checks"][0]) == {"name", "status", "measured", "bound", "goal", "seconds", "message"}
    assert "2 pass" in done.stdout.splitlines()[-1]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, and a process that the command may change."""
    monkeypatch.setattr(command, "_machine", lambda: {"device": "cpu"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    set_by_it = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG")
    for name in (*set_by_it, "CUDA_VISIBLE_DEVICES", *command.TF32_VARIABLES):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "found no CUDA device; --cpu runs the same checks in small on the CPU"),
        (["--cpu", "--only", "numbers.motor/*"], "--only numbers.motor/*: found no such check"),
    ],
)
def test_if_nothing_can_run_the_command_says_why_and_still_writes_json(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--json", str(tmp_path / "out.json")]) == 2
    assert f"gpu-check: {expected}" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["checks"] == []
    assert result["problem"].startswith(expected)


@pytest.mark.usefixtures("process")
def test_an_interrupted_run_is_no_success_and_blames_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [Record("numbers.engine/one", "pass")]

    def interrupted(*_: object) -> Iterator[list[Record]]:
        while records:
            yield [records.pop()]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    for expected in (["pass"], []):
        arguments = ["--cpu", "--only", "numbers.engine/*", "--json", str(tmp_path / "out.json")]
        assert command.main(arguments) == 1
        result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert result["problem"] == "interrupted"
        assert [check["status"] for check in result["checks"]] == expected
        assert "found no such check" not in capsys.readouterr().out


def test_a_rank_that_ends_before_it_gets_its_case_is_reported_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_and_fail(command: list[str], **options: object) -> subprocess.Popen[str]:
        process = start(["sh", "-c", "echo no memory; exit 1"], **options)
        process.wait()
        return process

    monkeypatch.setattr(ranks, "reference", lambda *_: None)
    monkeypatch.setattr(ranks.subprocess, "Popen", start_and_fail)
    with pytest.raises(RuntimeError, match="rank 0 failed:\nno memory\n; rank 1 failed:\nno memory"):
        ranks.World(Context("cpu", tmp_path)).run(ranks.CASES[0])


def test_a_check_that_hangs_or_crashes_costs_no_other_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module of such checks in the place of a real group's, and no torch, so that they begin at once.
    (tmp_path / "sitecustomize.py").write_text(STUBBORN, encoding="utf-8")
    folders = [tmp_path, *checkout.source_folders(), ROOT / "tooling"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    wait, deaf = subprocess.Popen.wait, tmp_path / "deaf"

    def wait_for_deaf(process: subprocess.Popen[bytes], timeout: float) -> int:
        """The group's limit passes when its check "deaf" runs, however long the machine takes to get there."""
        end = time.monotonic() + timeout
        while True:
            try:
                return wait(process, 0.05)
            except subprocess.TimeoutExpired:
                if deaf.exists() or time.monotonic() > end:
                    deaf.unlink(missing_ok=True)
                    raise

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_deaf)
    [group] = [group for group in GROUPS if group.name == "numbers.engine"]
    records = apart.run_apart(group, Context("cuda", tmp_path), (), left=100, check_limit=1)
    found = {record.name.removeprefix("numbers.engine/"): record for record in records}
    assert {name: record.status for name, record in found.items()} == {
        "quick": "pass",
        "endless": "timeout",
        "crash": "error",
        "after-a-crash": "pass",
        "breaks-the-device": "error",
        "after-another-device": "pass",
        "deaf": "timeout",
        "not-reached": "timeout",
    }
    assert found["endless"].message.startswith("stopped after 1 s\n")
    assert "in wait_for_ever" in found["endless"].message
    assert "exit code -11" in found["crash"].message
    assert found["breaks-the-device"].message.startswith("RuntimeError: illegal memory access\n")
    # The limit of the group, for a check on which the other one has no effect.
    assert found["deaf"].message.startswith("stopped after ")
    assert "in hear_nothing" in found["deaf"].message
    assert found["not-reached"].message.startswith("not reached: stopped after ")


STUBBORN = """
import os
import signal
import sys
import time
import types

usable = True


def synchronize():
    if not usable:
        raise RuntimeError("CUDA error")


cuda = types.SimpleNamespace(synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(set_float32_matmul_precision=lambda precision: None, cuda=cuda)
module = types.ModuleType("gpu.numerics.engine")


def checks(context):
    from gpu.records import Check, Outcome

    def passes():
        return Outcome({"error": 0.0}, {"error": 1.0})

    def wait_for_ever():
        time.sleep(1000)

    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    def break_device():
        global usable
        usable = False
        raise RuntimeError("illegal memory access")

    def hear_nothing():
        signal.alarm(0)
        (context.work / "deaf").touch()
        time.sleep(1000)

    yield Check("quick", passes)
    yield Check("endless", wait_for_ever)
    yield Check("crash", crash)
    yield Check("after-a-crash", passes)
    yield Check("breaks-the-device", break_device)
    yield Check("after-another-device", passes)
    yield Check("deaf", hear_nothing)
    yield Check("not-reached", passes)


module.checks = checks
sys.modules[module.__name__] = module
"""


def test_a_process_that_dies_while_it_writes_spoils_one_line(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"plan": ["a/b", "a/c"]}\n{"begun": "a/b"}\n{"record": {"measured": {}', encoding="utf-8")
    assert close_running(journal, "error", "exit code -9")
    assert unfinished_checks(journal) == ["a/c"]
    [first, second] = read_journal("a", journal, end="error", reason="exit code -9")
    assert (first.message, second.message) == ("exit code -9", "not reached: exit code -9")


def test_groups_fit_into_eight_minutes_and_take_no_time_from_later_ones() -> None:
    assert TIME_LIMIT == 480
    ends = ends_of(GROUPS, START_UP, TIME_LIMIT)
    assert ends[-1] == TIME_LIMIT
    for before, end, group in zip([START_UP, *ends], ends, GROUPS, strict=False):
        assert end - before == pytest.approx(group.seconds)
    assert time_factor(GROUPS, START_UP, TIME_LIMIT) == 1
    assert time_factor(GROUPS, 2 * START_UP, TIME_LIMIT) == 1, "a slow start takes no time from a check"
    # A part alone has all the time, and so have its checks.
    assert ends_of(GROUPS[:1], 10.0, 100.0) == [100.0]
    assert time_factor(GROUPS[:1], 10.0, 10.0 + 3 * GROUPS[0].seconds) == 3


def test_kernels_of_a_trace_are_no_ranges_of_the_host() -> None:
    def event(name: str, device: DeviceType, start: float, **more: object) -> SimpleNamespace:
        time_range = SimpleNamespace(start=start, end=start + 1.0)
        given = {"is_user_annotation": False, "cpu_children": (), **more}
        return SimpleNamespace(name=name, device_type=device, time_range=time_range, **given)

    events = [
        event("aten::mm", DeviceType.CPU, 0.0),
        event("FSDP::all_gather", DeviceType.CPU, 0.0, cpu_children=("aten::mm",), is_user_annotation=True),
        event("FSDP::all_gather", DeviceType.CUDA, 0.0, is_user_annotation=True),
        event("gemm", DeviceType.CUDA, 2.0),
        # Inductor records the launch of a kernel under the kernel's name.
        event("triton_poi_fused_0", DeviceType.CPU, 1.0),
        event("triton_poi_fused_0", DeviceType.CUDA, 3.0),
    ]
    found = intervals_of(events, on_gpu=True)
    assert [(one.name, one.begin) for one in found] == [("gemm", 2.0), ("triton_poi_fused_0", 3.0)]
    assert [one.name for one in intervals_of(events[:2], on_gpu=False)] == ["aten::mm"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--parts", "numbers,speeds"], "found speeds; allowed are numbers, speed, trace"),
        (["--json", "none/out.json"], "allowed is a file in a folder that exists"),
        (["--wheels", "none"], "found no wheel in none"),
        (["--time-limit", "0"], "found 0; allowed is a positive number of seconds"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert problem in capsys.readouterr().err


def test_a_tenth_of_a_per_cent_too_much_attention_is_found(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = sdpa.attend
    monkeypatch.setattr(sdpa, "attend", lambda *args, **options: attend(*args, **options) * 1.001)
    assert set(engine.fp32(context, "qwen3").exceeded) >= {"gradients", "outputs"}
    [check] = [c for c in attention.checks(context) if c.name == "attention-sdpa-fp32"]
    assert check.run().exceeded == ["output", "gradients"]


@pytest.mark.wide
def test_ranks_that_share_a_device_agree_with_the_reference(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ranks are processes of their own, which pytest's pythonpath does not reach.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    [group] = [group for group in GROUPS if group.name == "numbers.ranks"]
    # Every axis and every kind of model; d2 and t2 of the dense one run on a GPU only.
    checks = [
        check
        for check in group.checks(context)
        if check.name in ("qwen3-c2-gather-tree", "qwen3_moe-d2e2", "critic-t2")
    ]
    assert len(checks) == 3
    for check in checks:
        assert not check.run().exceeded, check.name


@pytest.mark.examples  # about seven minutes; in test-wide, every group runs without compilers
def test_the_whole_command_passes_on_the_cpu_with_compilers() -> None:
    start = time.monotonic()
    done = run_command(limit=2400)
    assert done.returncode == 0, f"{time.monotonic() - start:.0f} s\n{done.stdout}\n{done.stderr}"
