"""Every example is a configuration that resolves with the packages of this repository."""

from pathlib import Path

import pytest

from archon_core.plugins import registry
from archon_train.experiment import load_config
from archon_train.preflight import plan_run

GIVEN = {"sft_jsonl": ("data.path=train.jsonl",)}
"""Example -> options that its first lines leave to the command line."""

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_no_mistake_in_its_configuration(path: Path) -> None:
    loaded = load_config(path, GIVEN.get(path.stem, ()), registry(), allow_missing=True)
    plan = plan_run(loaded, registry())
    assert not plan.is_wrong, [obstacle.text for obstacle in plan.obstacles]
    assert not loaded.warnings
