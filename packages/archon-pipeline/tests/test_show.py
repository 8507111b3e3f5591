"""``archon pipeline show``: its output, the picture, recorded steps, and errors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from archon_core import registry
from archon_core.contracts.pipeline import Action, RankActions
from archon_core.plugins import ScheduleSpec
from archon_pipeline.placement import place_stages
from archon_pipeline.recording import Recording, render_recording
from archon_pipeline.schedules.one_f_one_b import one_f_one_b
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import TimedAction, Timeline

SVG = "{http://www.w3.org/2000/svg}"


def rows(text: str) -> list[str]:
    """The rows of the drawing, bands of a rank joined, without the rank's name."""
    ranks: dict[str, str] = {}
    for name, row in re.findall(r"^(rank \d+) +([FBIWfbiw·].*)$", text, flags=re.MULTILINE):
        ranks[name] = ranks.get(name, "") + row
    return list(ranks.values())


def test_a_schedule_is_drawn_with_its_numbers(archon: Callable) -> None:
    shown = archon("pipeline", "show", "ZBV", "--pp", "4", "--microbatches", "8")
    assert shown.code == 0
    assert "ZBVZeroBubble: 4 ranks, 8 micro-batches, 2 stages per rank (v)" in shown.out
    assert "bubble 0.0625 (waits 3, works 48), peak 4 x a rank's layers, 96 sends" in shown.out
    assert re.search(r"^2 +2, 5 +3 +8 +4 +32 *$", shown.out, flags=re.MULTILINE)
    assert len(rows(shown.out)) == 4


@pytest.mark.parametrize("columns", [80, 160, 200])
@pytest.mark.parametrize("sizes", [("2", "4"), ("4", "8"), ("8", "32")])
@pytest.mark.parametrize("schedule", ["GPipe", "1F1B", "I1F1B", "IZB", "ZBV"])
def test_every_drawing_fits_the_terminal(archon: Callable, schedule: str, sizes: tuple[str, str], columns: int) -> None:
    shown = archon("pipeline", "show", schedule, "--pp", sizes[0], "--microbatches", sizes[1], columns=columns)
    drawing = shown.out.partition("\n\n")[2]
    assert max(len(line) for line in drawing.splitlines()) <= columns
    assert len(rows(shown.out)) == int(sizes[0])


def test_drawings_are_to_scale_and_readable_without_colours(archon: Callable) -> None:
    shown = archon("pipeline", "show", "1F1B", "--pp", "2", "--microbatches", "2")
    first, second = rows(shown.out)
    assert re.findall(r"[FBIW]\d", first) == ["F0", "F1", "B0", "B1"]
    assert re.findall(r"[FBIW]\d", second) == ["F0", "B0", "F1", "B1"]
    # Rank 1 starts a unit late, and F takes a unit: both as wide.
    assert second.index("F0") == first.index("F1")
    assert second.index("F1") - second.index("B0") == 2 * (second.index("B0") - second.index("F0"))


def test_small_letters_are_a_ranks_later_stages(archon: Callable) -> None:
    shown = archon("pipeline", "show", "IZB", "--pp", "2", "--microbatches", "2")
    assert {"F0", "f0", "F1", "f1"} <= set(re.findall(r"[Ff]\d", rows(shown.out)[0]))
    assert "small: its second" in shown.out


@pytest.mark.parametrize("schedule", ["1F1B", "ZBV", "I1F1B"])
def test_the_picture_has_every_action_once_inside_the_frame(archon: Callable, tmp_path: Path, schedule: str) -> None:
    picture = tmp_path / "out.svg"
    shown = archon("pipeline", "show", schedule, "--pp", "4", "--microbatches", "8", "--svg", str(picture))
    assert f"wrote {picture}" in shown.out
    root = ElementTree.parse(picture).getroot()
    hints = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert len(set(hints)) == len(hints), "an action is drawn twice"
    stages = 4 if schedule == "1F1B" else 8
    assert sum("forward" in hint for hint in hints) == 8 * stages
    assert "0F0: forward of micro-batch 0 on stage 0, 0 to 1" in hints
    width = float(root.attrib["width"])
    assert all(
        float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        for bar in root.iter(f"{SVG}rect")
        if "x" in bar.attrib
    )


def test_long_pictures_continue_below(archon: Callable, tmp_path: Path) -> None:
    picture = tmp_path / "out.svg"
    archon("pipeline", "show", "ZBV", "--pp", "8", "--microbatches", "32", "--svg", str(picture))
    root = ElementTree.parse(picture).getroot()
    assert float(root.attrib["width"]) < 1800
    assert [text.text for text in root.iter(f"{SVG}text")].count("rank 7") == 2


def test_costs_change_the_times(archon: Callable) -> None:
    shown = archon("pipeline", "show", "1F1B", "--pp", "2", "--microbatches", "2", "--costs", "1,2,0.5")
    # Of three times 3.5, one is waiting: (p - 1) / m whatever the costs.
    assert "bubble 0.5000 (waits 3.5, works 7)" in shown.out
    slower = archon("pipeline", "show", "1F1B", "--pp", "2", "--microbatches", "2", "--message", "0.25")
    assert "bubble 0.5833 (waits 3.5, works 6)" in slower.out


def test_stages_per_rank_is_an_option_of_schedules_that_take_any_number(archon: Callable) -> None:
    assert (
        "3 stages per rank (loop)"
        in archon("pipeline", "show", "I1F1B", "--pp", "2", "--microbatches", "4", "--stages-per-rank", "3").out
    )
    assert (
        "2 stages per rank (v)"
        in archon("pipeline", "show", "ZBV", "--pp", "2", "--microbatches", "4", "--stages-per-rank", "2").out
    )


def test_a_recording_without_durations_is_drawn(archon: Callable, tmp_path: Path) -> None:
    rank = tuple(TimedAction(Action.parse(text), 0.0, 0.0) for text in ("0F0", "0B0"))
    recording = Recording("1F1B", 1, 1, Timeline((rank,), (0,)))
    (tmp_path / "pipeline-actor.json").write_text(render_recording(recording))
    shown = archon("pipeline", "show", "--run", str(tmp_path), "--svg", str(tmp_path / "out.svg"))
    assert shown.code == 0
    assert "measured: bubble 0.0000" in shown.out


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of 1F1B on two ranks; its critic took one second per unit and no time for messages."""
    rank_of = place_stages("loop", 2, 2)
    recording = Recording("1F1B", 4, 12, simulate(one_f_one_b(2, 2, 4), rank_of))
    (tmp_path / "pipeline-critic.json").write_text(render_recording(recording))
    return tmp_path


def test_a_recorded_step_is_shown_beside_its_replay(archon: Callable, run_folder: Path) -> None:
    picture = run_folder / "out.svg"
    shown = archon("pipeline", "show", "--run", str(run_folder), "--svg", str(picture))
    assert shown.code == 0
    assert "1F1B: critic, step 12, 2 ranks, 4 micro-batches" in shown.out
    assert "planned: bubble 0.2500 (waits 3000, works 12000 ms)" in shown.out
    assert "measured: bubble 0.2500" in shown.out
    planned, measured = (
        re.findall(rf"^{name} \d +(\S.*)$", shown.out, flags=re.MULTILINE) for name in ("planned", "measured")
    )
    assert planned == measured
    titles = [title.text for title in ElementTree.parse(picture).getroot().iter(f"{SVG}title")]
    assert titles.count("1B3: backward, whole of micro-batch 3 on stage 1, 11000 to 13000 ms") == 2


def test_several_recordings_need_a_role(archon: Callable, run_folder: Path) -> None:
    (run_folder / "pipeline-actor.json").write_bytes((run_folder / "pipeline-critic.json").read_bytes())
    refused = archon("pipeline", "show", "--run", str(run_folder))
    assert refused.code == 2
    assert "found recordings of 2 engines; allowed are actor, critic; choose by --role actor" in refused.err
    assert archon("pipeline", "show", "--run", str(run_folder), "--role", "critic").code == 0
    unknown = archon("pipeline", "show", "--run", str(run_folder), "--role", "ref")
    assert "found role 'ref'; allowed are actor, critic" in unknown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("1F1C --pp 2 --microbatches 2", "'1F1C'.*did you mean '1F1B'"),
        ("", "found no SCHEDULE; allowed are the names that `archon schedules` lists"),
        ("1F1B --microbatches 2", "--pp: found nothing; allowed is a number from 1; add --pp 4"),
        ("1F1B --pp 0 --microbatches 2", "--pp: found 0; allowed is 1 or more"),
        ("1F1B --pp 2 --microbatches -1", "--microbatches: found -1; allowed is 1 or more"),
        ("1F1B --pp 2 --microbatches 2 --stages-per-rank 2", "found 2; 1F1B allows 1; leave the option out"),
        ("ZBV --pp 2 --microbatches 2 --stages-per-rank 3", "found 3; ZBVZeroBubble allows 2"),
        ("IZB --pp 2 --microbatches 2 --stages-per-rank 1", "found 1; InterleavedZeroBubble allows 2 or more"),
        ("1F1B --pp 2 --microbatches 2 --costs 1,2", "--costs: found '1,2'; allowed are three times"),
        ("1F1B --pp 2 --microbatches 2 --costs 1,0,1", "--costs: found '1,0,1'; allowed are three times above 0"),
        ("1F1B --pp 2 --microbatches 2 --costs 1,nan,1", "--costs: found '1,nan,1'"),
        ("1F1B --pp 2 --microbatches 2 --message -1", "--message: found -1; allowed is a time of 0 or more"),
        ("1F1B --pp 2 --microbatches 2 --svg /nowhere/out.svg", "--svg: found '/nowhere/out.svg', which cannot"),
        ("1F1B --pp 500 --microbatches 5000", "allowed is a product of 50000"),
        ("--run /nowhere", "--run: found '/nowhere', no such folder; .*config.yaml"),
        (
            "1F1B --pp 2 --run /nowhere",
            "--run: found SCHEDULE, --pp beside it; allowed with --run are --role and --svg",
        ),
        ("--run /nowhere --costs 1,1,1 --message 0", "--run: found --costs, --message beside it"),
        ("1F1B --pp 2 --microbatches 2 --role actor", "--role: found it without --run; allowed is the role"),
    ],
)
def test_invalid_input_is_refused_with_a_fix(archon: Callable, arguments: str, message: str) -> None:
    refused = archon("pipeline", "show", *arguments.split())
    assert refused.code == 2
    assert re.search(message, refused.err)
    assert "Traceback" not in refused.err


def test_a_run_without_a_recording_is_refused(archon: Callable, tmp_path: Path) -> None:
    refused = archon("pipeline", "show", "--run", str(tmp_path))
    assert refused.code == 2
    assert "no recording in it (pipeline-ROLE.json)" in refused.err


def wrong_order(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """1F1B with the lists of its ranks in reverse order."""
    return tuple(reversed(one_f_one_b(n_ranks, n_stages, n_micro_batches)))


def test_third_party_schedules_are_checked_before_they_are_drawn(
    archon: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "others_schedule", sys.modules[__name__])
    registry.cache_clear()
    registry().add(ScheduleSpec(name="Turned", target="others_schedule:wrong_order", multiple_of_ranks=True))
    try:
        refused = archon("pipeline", "show", "Turned", "--pp", "2", "--microbatches", "2")
        assert refused.code == 2
        assert "Turned: found 1F0 on rank 0; allowed there are stages 0; move it to rank 1" in refused.err
        uneven = archon("pipeline", "show", "Turned", "--pp", "2", "--microbatches", "3")
        assert "--microbatches: found 3; Turned allows multiples of --pp, here 2; use 4" in uneven.err
    finally:
        registry.cache_clear()


def test_help_names_the_options_and_defines_the_bubble(archon: Callable) -> None:
    shown = archon("pipeline", "show", "--help", columns=100)
    assert shown.code == 0
    for words in ("--pp", "--microbatches", "--stages-per-rank", "--costs", "F,B,W", "--svg", "--run", "The bubble is"):
        assert words in shown.out


def test_the_command_imports_no_torch() -> None:
    script = (
        "import sys; from archon_core.cli.main import main\n"
        "try: main(['pipeline', 'show', 'ZBV', '--pp', '2', '--microbatches', '2'])\n"
        "except SystemExit as exit_: assert not exit_.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
