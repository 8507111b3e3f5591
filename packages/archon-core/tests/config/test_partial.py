"""Reading a few options of a file whose other options belong to packages that are not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from archon_core.config.partial import read_part
from archon_core.config.root import RootSchema
from archon_core.config.rules import POSITIVE, option
from archon_core.errors import ConfigError
from archon_core.plugins import Registry


@dataclass
class Cluster:
    """A section.

    Attributes:
        root: a folder.
        nodes: a number.
    """

    root: str = "runs"
    nodes: int = option(1, POSITIVE)


@dataclass
class Part:
    """A few options.

    Attributes:
        name: a text.
        cluster: a section.
    """

    name: str = "run"
    cluster: Cluster = field(default_factory=Cluster)


ROOT = RootSchema(Part, {})

FILE = """
name: ${model.path}-${seed}
seed: 7
model: {path: tiny, layers: [1, 2]}
cluster: {root: "/data/${name}", gpus: 8, nodes: "${model.nodes}"}
"""


@pytest.fixture
def read(tmp_path: Path):
    path = tmp_path / "run.yaml"

    def read(text: str, *overrides: str) -> Part:
        path.write_text(text, encoding="utf-8")
        return read_part(path, overrides, root=ROOT, registry=Registry([]))

    return read


def test_other_options_are_ignored_but_references_to_them_hold(read) -> None:
    assert read(FILE, "model.nodes=3", "cluster.gpus=1") == Part("tiny-7", Cluster("/data/tiny-7", 3))
    assert read("model: {path: tiny}") == Part()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nam=x", "unknown option nam; did you mean 'name'"),
        ("cluster.rot=x", "unknown option cluster.rot; did you mean 'root'"),
        ("cluster.nodes=0", "cluster.nodes: found 0; allowed are numbers from 1"),
        ("cluster.nodes=many", "cluster.nodes"),
        ("name=${missing}", "there is no option missing"),
    ],
)
def test_misspelt_overrides_and_wrong_values_of_known_options_are_errors(read, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read("name: x", override)
