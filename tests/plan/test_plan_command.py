"""The command ``archon plan``: its exit codes, its JSON, and that it needs neither torch nor other plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archon_core.cli.main import main
from archon_core.plugins import registry
from archon_plan.answer import Answer, find_answer
from archon_plan.calibrate import Sizes
from archon_plan.devices import Device, find_device
from archon_plan.engine_flags import EngineFlags, request_engine
from archon_plan.memory import rank_memory
from archon_plan.timing import step_time
from archon_plan.traffic import transfers

ROOT = Path(__file__).parents[2]
MOE = str(ROOT / "tests" / "data" / "qwen3-30b-a3b.json")
AREAL = str(ROOT / "examples" / "archon_qwen3_moe.yaml")
OWN = str(ROOT / "examples" / "grpo_arithmetic.yaml")
FEW = ("data.batch_size=32", "rollout.backend=local")
"""Few micro-batches and no servers, for speed."""

SMALL = ("--model", "qwen3-0.6b", "--layout", "archon:d2")


def run(*arguments: str) -> int:
    """The exit code of ``archon plan``."""
    with pytest.raises(SystemExit) as exit:
        main(["plan", *arguments])
    return int(exit.value.code or 0)


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    run(*arguments, "--json")
    return dict(json.loads(capsys.readouterr().out))


def test_the_json_has_the_numbers_of_the_planning_functions(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--layout", "archon:p4t2c2e4", "--tokens", "8192", "--n-mbs", "8", "--seq", "2048")
    (engine,) = answer_of(capsys, "--model", MOE, *given, "--device", "h200")["engines"]
    flags = EngineFlags(model=MOE, layout="archon:p4t2c2e4", tokens=8192, n_mbs=8, seq=2048)
    device = find_device("h200")
    found = find_answer(request_engine(flags), device, registry())
    assert isinstance(found, Answer)
    setting = found.engines[0].plan.setting
    expected = {"per_micro_batch": 8192, "n_micro_batches": 8, "sequence": 2048, "scored": 1.0, "shared": None}
    assert engine["tokens"] == expected
    assert [memory["total_bytes"] for memory in engine["memory"]] == [
        rank_memory(setting, rank, device).total for rank in range(4)
    ]
    for memory in engine["memory"]:
        assert sum(part["bytes"] for part in memory["parts"]) == pytest.approx(memory["total_bytes"])
    assert engine["peak_bytes"] == max(memory["total_bytes"] for memory in engine["memory"])
    assert [(row["axis"], row["bytes"]) for row in engine["traffic"]] == [
        (transfer.axis, transfer.bytes) for transfer in transfers(setting)
    ]
    time = step_time(setting, device)
    assert (engine["time"]["total"], engine["time"]["mfu"], engine["time"]["bubble"]) == (
        time.total,
        time.mfu,
        time.bubble,
    )


@pytest.mark.parametrize(
    ("path", "roles"),
    [((AREAL, FEW[0], "actor.backend=archon:d4t4e4"), ["actor"]), ((OWN,), ["actor"])],
    ids=["areal", "archon"],
)
def test_a_file_of_either_dialect_is_planned_with_its_run(
    path: tuple[str, ...], roles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer_of(capsys, *path)
    assert [engine["role"] for engine in found["engines"]] == roles
    assert found["run"]["steps_per_hour"] > 0
    assert found["fits"]


def test_engines_on_the_same_ranks_share_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "examples" / "ppo_arithmetic.yaml")
    apart, critic = answer_of(capsys, path)["engines"]
    resident = sum(
        part["bytes"] for part in critic["memory"][0]["parts"] if part["name"] in ("parameters", "optimizer")
    )
    assert resident > 0
    assert apart["peak_bytes"] == pytest.approx(apart["memory"][0]["total_bytes"] + resident)
    offloaded, _ = answer_of(capsys, path, "enable_offload=true")["engines"]
    assert offloaded["peak_bytes"] == offloaded["memory"][0]["total_bytes"]


def test_the_text_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(AREAL, *FEW) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "16 ranks = 4 pipeline x 2 context x 2 tensor",
        "= 4 pipeline x 4 expert, for experts",
        "stages, for Interleaved1F1B",
        "32 query and 4 key heads 2 tensor x 2 context 8 query and 1 key",
        "memory of the fullest rank",
        "tokens to experts",
        "time of one optimizer step",
        "steps/h",
        "memory of a device while it samples",
    ):
        assert part in text, part


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_bar_of_memory_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(*SMALL) == 0
    bars = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[") and "GiB" in line]
    assert len(bars) == 1
    assert 30 < len(bars[0]) <= width


def test_what_does_not_fit_exits_with_1_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    model, mode, tokens = ("--model", "qwen3-14b"), ("--ac-mode", "none"), ("--tokens", "8192")
    assert run(*model, "--layout", "archon:d4", *mode, *tokens) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "does not fit: actor needs" in lines[0]
    assert "are missing" in lines[0]
    found = {label: text for label, _, text in (line.partition(": ") for line in lines[1:]) if text}
    settings = [line.removeprefix("fits with ").split() for line in lines if line.startswith("fits with ")]
    assert ["--ac-mode", "full"] in settings
    for given in settings:
        kept = [*(() if "--tokens" in given else tokens), *(() if "--ac-mode" in given else mode)]
        assert run(*model, "--layout", "archon:d4", *kept, *given) == 0, given
    for layout in (*found["fits on as many ranks"].split(", "), found["fits on more ranks"]):
        assert run(*model, "--layout", layout, *mode, *tokens) == 0, layout
    capsys.readouterr()
    data = answer_of(capsys, *model, "--layout", "archon:d4", *mode, *tokens)["alternatives"]
    assert data["larger"] == found["fits on more ranks"]
    assert data["layouts"] == found["fits on as many ranks"].split(", ")


def test_violated_constraints_exit_with_2_and_show_the_nearest_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", MOE, "--layout", "archon:d3e7t3", "--schedule", "none") == 2
    err = capsys.readouterr().err
    assert "violated: actor archon:d3e7t3" in err
    assert "--layout: found e7, which needs a multiple of 7 ranks" in err
    assert "  archon:d3e7t3\n           ^^" in err
    assert "nearest layouts that work: archon:d9" in err


def test_violated_constraints_of_a_file_name_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(AREAL, "actor.backend=archon:d1p4t3c2", "cluster.n_nodes=1") == 2
    err = capsys.readouterr().err
    assert "actor.backend: found t3 on attention heads (32)" in err
    assert "cluster: found engines that need" in err


def test_violations_are_json_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer_of(capsys, "--model", MOE, "--layout", "archon:d4t64")
    assert found["fits"] is False
    assert [violation["option"] for violation in found["violations"]] == ["--layout"]
    assert found["violations"][0]["nearest"][0] == "archon:d8t32"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "found neither a file nor --model"),
        (("--model", "qwen3-8b"), "--layout: found none"),
        (("--model", "qwen9-8b", "--layout", "archon:d4"), "--model: found 'qwen9-8b'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--device", "h1000"), "'h1000'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--set", "speed=3"), "'speed'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--nodes", "3"), "--nodes: found 3 for 4 devices"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--world", "8"), "--world: found it without --search"),
        (("--model", "qwen3-8b", "--search"), "--search: found no --world"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--role", "acter"), "--role: found 'acter'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--ac-mode", "half"), "--ac-mode: found 'half'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--dtype", "fp8"), "--dtype: found 'fp8'"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--optimizer", "lion"), "--optimizer: found 'lion'"),
        (("--model", "qwen3-8b", "--layout", "archon:p2", "--schedule", "2F2B"), "2F2B"),
        (("--model", "qwen3-8b", "--layout", "archon:d4", "--tokens", "0"), "0 is not in the range"),
        (("no_such.yaml",), "no_such.yaml"),
        ((AREAL, "--layout", "archon:d4"), "override it: actor.backend=..."),
        ((AREAL, "--critic"), "override it: actor.is_critic=..."),
        ((AREAL, "actor.backend=archon:d4x"), "unknown letter 'x'"),
        ((AREAL, "actor.path=me/mine"), "found 'me/mine'"),
        ((AREAL, "no.such=1"), "no.such"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert expected in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_figures_of_the_device_can_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--set", "memory=1e9") == 1
    assert "h100 has 0.93 GiB" in capsys.readouterr().err
    fast, slow = (
        answer_of(capsys, *SMALL, "--set", f"efficiency.dense={share}")["engines"][0]["time"]["total"]
        for share in (0.9, 0.3)
    )
    assert fast < slow


def test_machines_share_devices_equally(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        answer_of(capsys, "--model", "qwen3-8b", "--layout", "archon:t4d2", "--nodes", nodes)["engines"][0]["time"]
        for nodes in ("1", "4")
    )
    assert one["total"] < two["total"]  # tensor ranks on two machines


def test_the_page_is_written_and_a_wrong_path_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--html", str(tmp_path / "plan.html")) == 0
    assert "<html" in (tmp_path / "plan.html").read_text()
    assert run(*SMALL, "--html", str(tmp_path / "no" / "plan.html")) == 2
    assert "--html: found" in capsys.readouterr().err


ANSWER = """
import sys
from archon_core.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
print("imported", *sorted({"torch", "transformers", "numpy"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", MOE, "--layout", "archon:p4t2c2e4", "--tokens", "8192"),
        pytest.param((AREAL, *FEW), marks=pytest.mark.wide),
    ],
    ids=["flags", "file"],
)
def test_a_fresh_interpreter_answers_without_torch(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", ANSWER, "plan", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.strip().splitlines()[-1] == "imported"
    assert "tokens/s" in ended.stdout


def test_without_other_plugins_the_message_names_the_missing_package() -> None:
    environment = {**os.environ, "ARCHON_DISABLE_PLUGINS": "models-qwen,models-hf,pipeline,moe,rl,rollout"}
    command = [sys.executable, "-c", ANSWER, "plan", *SMALL]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode == 2, ended.stdout
    assert "archon-models-qwen" in ended.stderr


def test_a_measured_device_is_written_and_can_be_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(sizes: Sizes | None, *, device_type: str | None, name: str) -> Device:
        asked.append((sizes, device_type))
        return replace(find_device("cpu"), name=name).with_figures({"memory": 5e9}, source="measured")

    monkeypatch.setattr("archon_plan.calibrate.calibrate", measure)
    file = tmp_path / "mine.yaml"
    assert run("--calibrate", str(file), "--device", "cpu", "--model", "qwen3-0.6b") == 0
    assert asked[0][0] is not None
    assert ((3072, 1024) in asked[0][0].matrices, asked[0][1]) == (True, "cpu")
    assert "measured" in capsys.readouterr().out
    planned = answer_of(capsys, *SMALL, "--device", str(file))["device"]
    assert (planned["name"], planned["memory_bytes"]) == ("mine", 5e9)
    assert planned["figures"]["memory"] == {"value": 5e9, "source": "measured"}
    assert run("--calibrate", str(tmp_path / "mine.txt")) == 2
    assert run("--calibrate", str(file), "--device", "h100") == 2
    assert run("--calibrate", str(tmp_path / "no" / "mine.yaml")) == 2
