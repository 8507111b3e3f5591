"""The schedule of docs/pipeline.md is a whole plugin: its code is run as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from archon_core import registry
from archon_core.cli.main import main
from archon_core.plugins import ScheduleSpec
from archon_pipeline.checking import check_actions
from archon_pipeline.timeline import count_peak_activations

PAGE = (Path(__file__).parents[1] / "docs/pipeline.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    [code] = re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    return code


@pytest.fixture
def lifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScheduleSpec]:
    """The example's spec, its package importable and registered."""
    package = tmp_path / "lifo_schedule"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "actions.py").write_text(example("schedule"))
    (package / "plugin.py").write_text(example("plugin"))
    monkeypatch.syspath_prepend(str(tmp_path))
    from lifo_schedule.plugin import archon_schedules

    [spec] = archon_schedules()
    registry.cache_clear()
    registry().add(spec)
    yield spec
    registry.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lifo_schedule"]:
        del sys.modules[name]


def test_the_example_schedule_can_be_executed_and_drawn(lifo: ScheduleSpec, capsys: pytest.CaptureFixture[str]) -> None:
    actions = lifo.load()(4, 4, 8)
    check_actions(actions, (0, 1, 2, 3), 8)
    assert count_peak_activations(actions) == (8, 8, 8, 8)
    with pytest.raises(SystemExit) as exit_:
        main(["pipeline", "show", "LIFO", "--pp", "4", "--microbatches", "8"])
    assert not exit_.value.code
    # Backward passes follow forward passes at once on the last rank, so the bubble is GPipe's.
    assert "LIFO: 4 ranks, 8 micro-batches, 1 stage per rank\nbubble 0.3750" in capsys.readouterr().out
