"""Whatever a configuration file or an override holds ends in a configuration or in one of our errors.

In process, through everything that a dry run does before it prints: parsing, AReaL's names, plugins' sections, types,
references, validation, the plan of the run, and the resolved configuration as YAML.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from archon_core.cli.main import main
from archon_core.config import loading
from archon_core.config.loading import LoadedConfig, read_tree
from archon_core.config.overrides import parse_overrides
from archon_core.config.yaml_file import parse_yaml, read_yaml
from archon_core.errors import ArchonError, ConfigError
from archon_core.plugins import registry
from archon_train.experiment import ROOT
from archon_train.preflight import plan_run

sys.path.insert(0, str(Path(__file__).parent))

from config_trees import Plain, as_yaml, known_names, near_misses, scalars, trees, typed_options

NAMES = known_names()
WILD = trees(NAMES, scalars())
NEAR = near_misses(typed_options())
OVERRIDES = st.lists(
    st.text(max_size=12)
    | st.builds("{}={}".format, st.sampled_from(sorted(typed_options())), st.text(max_size=8) | scalars().map(as_yaml)),
    max_size=3,
)


def fuzz(n_examples: int, *arguments: st.SearchStrategy):
    """Run a test on many examples; small ones are looked for when one fails."""
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    run = settings(max_examples=n_examples, phases=phases, suppress_health_check=list(HealthCheck), database=None)
    return lambda test: run(given(*arguments)(test))


def dry_run(text: str, overrides: list[str] = ()) -> LoadedConfig | None:
    """The configuration, or ``None`` for one that is refused; every other error ends the test."""
    try:
        loaded = read_tree(parse_yaml(text, "f"), parse_overrides(overrides), registry(), root=ROOT, allow_missing=True)
        plan_run(loaded, registry())
    except ArchonError:
        return None
    return loaded


def check_round_trip(loaded: LoadedConfig) -> None:
    again = read_tree(
        parse_yaml(loaded.to_yaml(), "again"), parse_overrides([]), registry(), root=ROOT, allow_missing=True
    )
    # Not-a-number is refused everywhere, so equal configurations are equal.
    assert again.config == loaded.config


def check_tree(tree: dict) -> None:
    text = as_yaml(tree)
    loaded = dry_run(text)
    if loaded is not None and "${" not in text:  # a reference may choose other sections than what it stands for
        check_round_trip(loaded)


def check_overrides(overrides: list[str]) -> None:
    dry_run("{seed: 1}", overrides)


def check_bytes(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    refusal = str(file)
    try:
        read_yaml(file)
    except ConfigError as error:
        refusal = str(error)
    assert refusal.startswith(str(file))


test_any_tree_of_known_names_with_any_values_is_read_or_refused = fuzz(50, WILD)(check_tree)
test_options_with_values_of_their_types_are_read_or_refused = example({"scheduler": {"type": Plain("null")}})(
    fuzz(50, NEAR)(check_tree)
)
test_any_overrides_are_read_or_refused = fuzz(100, OVERRIDES)(check_overrides)

soak = pytest.mark.soak
test_many_trees_with_any_values = soak(fuzz(400, WILD)(check_tree))
test_many_options_with_values_of_their_types = soak(fuzz(400, NEAR)(check_tree))
test_many_overrides = soak(fuzz(600, OVERRIDES)(check_overrides))


YAML_LIKE = st.lists(
    st.sampled_from(
        [*(b"- : { } [ ] , & * ! # | > ' \" % @ ` ? ~ \\ << a b &a *a !!int !!python/object: --- ... null".split())]
        + [b" ", b"\n", b"  ", b"\t", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\xc2\x85"]
    ),
    max_size=30,
).map(b"".join)


@fuzz(500, st.binary(max_size=60) | YAML_LIKE)
@example(b"\xff\xfea\0:\0 \x001\0")
@example(b"a: \xc3")
@example(b"[" * 100_000)
@example(b"{a: " * 100_000)
@example(b"- " * 100_000)
@example(b"a:\n" * 3)
def test_any_bytes_are_read_or_refused_with_the_files_name(tmp_path_factory, data):
    check_bytes(tmp_path_factory.getbasetemp() / "bytes.yaml", data)


LETTERS = "abcdefghijklmnopqrstuvwx"
BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(LETTERS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BILLION_LAUGHS, "the file expands to more than 20000 values"),
        ("a: &a {b: *a}\n", "refers to no complete value above it"),
        ("a: !!python/object/apply:os.system [true]\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !new {x: 1}\n", "the tag '!new' is not supported"),
        ("seed: 1\nseed: 2\n", "'seed' appears twice in this section"),
        ("actor: {path: a, 'path': b}\n", "'path' appears twice in this section"),
        ("actor: " + "{a: " * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        ('trial_name: "\\ud800"\n', "found half a surrogate pair"),
        ('"\\udc00": 1\n', "found half a surrogate pair"),
        ("cluster: {n_nodes: " + "9" * 5000 + "}\n", "... (5000 characters); allowed is a whole number"),
        ("actor: {path: " + "x" * 300 + "}\n", "a path without NUL characters"),
        ('actor: {path: "a\\0b"}\n', "a path without NUL characters"),
        ("data: {path: ~nobody-of-this-name/x}\n", "the home folder of a user of this machine"),
    ],
)
def test_traps_are_refused_by_name(text, message):
    with pytest.raises(ConfigError) as refused:
        read_tree(parse_yaml(text, "f"), parse_overrides([]), registry(), root=ROOT, allow_missing=True)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_surrogate_pair_is_one_character_as_in_json():
    assert dry_run('{"trial_name": "\\ud83d\\ude00"}').config.trial_name == "\U0001f600"


@pytest.mark.parametrize(
    "text", ["None", "null", "~", "true", "off", "12", "1e-3", "", "- a", "a: b", "#", "'", "\0", "é"]
)
def test_a_text_that_looks_like_something_else_is_written_so_that_it_is_read_as_a_text(text):
    loaded = dry_run(json.dumps({"actor": {"model_config": {"model_type": text, "list": [text]}}}))
    check_round_trip(loaded)
    assert loaded.config.actor.model_config == {"model_type": text, "list": [text]}


def check_merging(tree: dict) -> None:
    text = as_yaml(tree)
    needs_resolving = loading._needs_resolving
    ours = dry_run(text)
    try:
        loading._needs_resolving = lambda values: True
        theirs = dry_run(text)
    finally:
        loading._needs_resolving = needs_resolving
    assert (ours and ours.config) == (theirs and theirs.config)


test_values_without_references_are_merged_as_omegaconf_merges_them = fuzz(15, NEAR)(check_merging)
test_many_values_are_merged_as_omegaconf_merges_them = soak(fuzz(60, NEAR)(check_merging))


@fuzz(10, NEAR)
def test_the_command_prints_any_of_it(tmp_path_factory, tree):
    file = tmp_path_factory.getbasetemp() / "printed.yaml"
    file.write_text(as_yaml(tree), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(file), "--dry-run"])
    assert exit_.value.code in (0, 2)
