import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from archon_core.config.raw import RawList, RawMapping, RawScalar, shown, walk
from archon_core.config.yaml_file import MAX_DEPTH, parse_yaml, read_yaml
from archon_core.errors import ConfigError


def text_at(tree: RawMapping, path: str) -> str:
    node = tree.get(path)
    assert isinstance(node, RawScalar)
    return node.text


@pytest.mark.parametrize(
    "text", ["off", "1e4", "012", "1:30", "0x1F", "2020-01-01", "1_000", "+.inf", "yes", "=", "NaN"]
)
def test_a_value_is_kept_as_it_is_written_whatever_yaml_takes_it_for(text: str) -> None:
    assert text_at(parse_yaml(f"a: {text}", "f"), "a") == text


def test_every_node_knows_its_line() -> None:
    tree = parse_yaml("a:\n  b: 1\n  c:\n  - x\n", "f.yaml")
    assert {path: node.source for path, node in walk(tree)} == {"a": "f.yaml:1", "a.b": "f.yaml:2", "a.c": "f.yaml:3"}


def test_only_values_without_quotes_can_be_null() -> None:
    tree = parse_yaml("a: null\nb: ~\nc:\nd: 'null'\ne: \"\"\nf: !!str null\n", "f")
    nulls = {key: node.is_null for key, node in tree.entries.items() if isinstance(node, RawScalar)}
    assert nulls == {"a": True, "b": True, "c": True, "d": False, "e": False, "f": False}


def test_anchors_and_merge_keys_give_sections_of_their_own() -> None:
    tree = parse_yaml("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nlist: [*b]\n", "f")
    assert shown(tree.get("use")) == "{x: 1, y: 3}"  # type: ignore[arg-type]
    assert shown(tree.get("list")) == "[{x: 1, y: 2}]"  # type: ignore[arg-type]


def test_of_several_merged_sections_the_first_wins() -> None:
    tree = parse_yaml("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n", "f")
    assert shown(tree.get("c")) == "{x: 1, y: 2}"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: the file is empty"),
        ("# only a comment\n", "f: the file is empty"),
        ("---\n", "f: the file is empty"),
        ("null", "f: the file is empty"),
        ("- a\n- b\n", "f: found a list at the top"),
        ("just text", "f: found the text 'just text' at the top"),
        ("a: 1\na: 2\n", "f:2: 'a' appears twice in this section, first on line 1"),
        ("s:\n  a: 1\n  b: 2\n  a: 3\n", "f:4: 'a' appears twice in this section, first on line 2"),
        ("a:\n\tb: 1\n", "f:2: found a tab; indent with spaces"),
        ("a: 1\n---\nb: 2\n", "f:2: a second document"),
        ("a: *nowhere\n", r"f:1: '\*nowhere' refers to no complete value above it"),
        ("a: &a\n  b: *a\n", r"f:2: '\*a' refers to no complete value above it"),
        ("a: !include other.yaml\n", "f:1: the tag '!include' is not supported"),
        ("a: !!python/object/apply:os.system [ls]\n", "f:1: the tag .*python.* is not supported"),
        ("? [x, y]\n: 1\n", "f:1: found a name that is not plain text"),
        ("~: 1\n", "f:1: found the name '~'"),
        ("<<: 3\n", "f:1: '<<' takes a section"),
        ("a: [1, 2\nb: 3\n", "f:2: invalid YAML"),
        ("a: b: c\n", "f:1: invalid YAML"),
        ("a: 'open\n", "f:2: invalid YAML"),
        ("a: @b\n", "f:1: invalid YAML"),
        ("a: \x00\n", "f: invalid YAML"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line_and_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_yaml(text, "f")


def test_a_few_lines_cannot_stand_for_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="expands to more than"):
        parse_yaml("\n".join(lines), "f")


def test_nesting_has_a_limit_and_not_pythons() -> None:
    with pytest.raises(ConfigError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_yaml("a: " + "[" * 200 + "]" * 200, "f")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert text_at(read_yaml(path), "seed") == "3"


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: not UTF-8 \(byte 3"):
        read_yaml(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8)
trees = st.dictionaries(
    names,
    st.recursive(
        texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    ),
    min_size=1,
    max_size=4,
)


def to_plain(node: object) -> object:
    if isinstance(node, RawScalar):
        return node.text
    if isinstance(node, RawList):
        return [to_plain(item) for item in node.items]
    assert isinstance(node, RawMapping)
    return {key: to_plain(child) for key, child in node.entries.items()}


@given(trees)
def test_any_tree_of_texts_is_read_as_it_was_written(tree: dict[str, object]) -> None:
    for style in ('"', "'"):
        text = yaml.safe_dump(tree, default_style=style, allow_unicode=True)
        assert to_plain(parse_yaml(text, "f")) == tree
