from dataclasses import dataclass, field

import pytest

from archon_core.config.reference import attribute_texts, options_of, render_reference, root_sections
from archon_core.config.sections import PluginSection
from archon_core.contracts.engine_config import ROLES
from archon_core.plugins import AlgorithmSpec
from archon_train.experiment import ExperimentConfig


@dataclass
class Inner:
    """Inside.

    Attributes:
        depth: how deep.
    """

    depth: int = 1


@dataclass
class Example:
    """An example, with ``code`` in it.

    Attributes:
        a: one thing,
            on two lines: with a colon.
        b: ``x`` | ``y``.
        c: none at all.
        names: several.
        inner: a section.
    """

    a: int = 3
    b: str = "x"
    c: float | None = None
    names: list[str] = field(default_factory=lambda: ["p", "q"])
    inner: Inner | None = None


@dataclass
class Undocumented:
    """Nothing about its field."""

    a: int = 3


def test_an_options_text_is_its_docstrings_entry_on_one_line() -> None:
    assert attribute_texts(Example)["a"] == "one thing, on two lines: with a colon."


def test_types_and_defaults_are_in_a_users_words() -> None:
    rows = {o.name: (o.type, o.default) for o in options_of(Example)}
    assert rows == {
        "a": ("integer", "3"),
        "b": ("text", "x"),
        "c": ("number or null", "null"),
        "names": ("list[text]", "['p', 'q']"),
        "inner": ("section or null", "null"),
    }


def test_an_option_without_documentation_is_an_error() -> None:
    with pytest.raises(ValueError, match="Undocumented: found no entry for a"):
        options_of(Undocumented)


def test_every_option_of_an_experiment_is_documented_and_on_the_page() -> None:
    page = render_reference(ExperimentConfig)
    for entry in root_sections(ExperimentConfig):
        for option in options_of(entry.schema):
            assert f"| `{option.name}` |" in page, f"{entry.paths[0]}.{option.name}"
    assert [entry.paths[0] for entry in root_sections(ExperimentConfig)][:2] == ["", "cluster"]
    (optimizer,) = [entry for entry in root_sections(ExperimentConfig) if "actor.optimizer" in entry.paths]
    assert optimizer.paths == [f"{role}.optimizer" for role in ROLES]


def test_a_plugins_section_follows_with_its_package_and_users() -> None:
    specs = [AlgorithmSpec(name=name, target="m:f", origin="archon-x") for name in ("one", "two")]
    page = render_reference(ExperimentConfig, [PluginSection("actor", Example, spec) for spec in specs])
    assert "## `actor` (archon-x)" in page
    assert "An example, with `code` in it. Used with algorithm `one`, algorithm `two`." in page
    assert r"| `b` | text | `x` | `x` \| `y`. |" in page
    assert "### `actor.inner` (archon-x)" in page


def test_the_page_does_not_depend_on_the_order_of_plugins() -> None:
    sections = [
        PluginSection(path, Example, AlgorithmSpec(name=path, target="m:f", origin=f"archon-{path}")) for path in "ab"
    ]
    assert render_reference(ExperimentConfig, sections) == render_reference(ExperimentConfig, sections[::-1])


def test_inherited_documentation_counts() -> None:
    @dataclass
    class Extended(ExperimentConfig):
        """More.

        Attributes:
            extra: new.
        """

        extra: int = 0

    assert {"seed", "extra"} <= set(attribute_texts(Extended))
