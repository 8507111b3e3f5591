"""Backends as data, and the table that installed engines add to."""

from __future__ import annotations

import pytest

from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.errors import PluginError
from archon_core.layout import BUILTIN_BACKENDS, Backend, backend_table, parse_layout


@pytest.mark.parametrize("name", BUILTIN_BACKENDS)
def test_the_example_of_every_backend_is_a_layout(name: str) -> None:
    backend = BUILTIN_BACKENDS[name]

    assert parse_layout(backend.example()).backend == backend.name == name


def test_installed_engines_are_added_under_their_names_and_aliases() -> None:
    table = backend_table(
        [TrainEngineSpec("slim", "slim:Engine", aliases=("thin",), letters="d", hybrid=False)],
        [InferenceEngineSpec("remote", "remote:Engine", letters="dt")],
    )

    assert table["slim"] == Backend("slim", "train", "d")
    assert table["thin"] == Backend("thin", "train", "d")
    assert table["remote"] == Backend("remote", "inference", "dt")
    assert table.keys() > BUILTIN_BACKENDS.keys()
    assert str(parse_layout("thin:d2", backends=table)) == "thin:d2"


def test_the_spec_of_an_installed_engine_replaces_the_built_in_row() -> None:
    table = backend_table(inference_engines=[InferenceEngineSpec("sglang", "x:Y", letters="dtp")])

    assert parse_layout("sglang:d2p2", backends=table).world_size == 4
    assert BUILTIN_BACKENDS["sglang"].letters == "dt"


@pytest.mark.parametrize("letters", ["dx", "dd", "D"])
def test_letters_that_the_grammar_does_not_have_are_refused(letters: str) -> None:
    with pytest.raises(PluginError, match=r"'slim': found letters .*; allowed: each of d, t, p, c, e, r .*; fix: "):
        Backend("slim", "train", letters)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "(a", "4d", "a|b", "a.b"])
def test_names_that_a_layout_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(PluginError, match=r"found characters .*; allowed: .*; fix: "):
        Backend(name, "train", "d")
