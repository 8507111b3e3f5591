import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.config.overrides import parse_override, parse_overrides
from archon_core.config.raw import RawScalar, merge, shown
from archon_core.config.yaml_file import parse_yaml
from archon_core.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "option", "value"),
    [
        ("a.b=c", "a.b", "c"),
        ("+a.b=c", "a.b", "c"),
        ("++a.b=c", "a.b", "c"),
        ("a= spaced ", "a", "spaced"),
        ("a=b=c", "a", "b=c"),
        ("a=", "a", ""),
        ("a='1, 2'", "a", "1, 2"),
        ("a=[1, x]", "a", "[1, x]"),
        ("a={b: 1, c: {d: 2}}", "a", "{b: 1, c: {d: 2}}"),
        ("a={b: 1, c: {d: 2}}", "a.c.d", "2"),
        ("a=${b.c}", "a", "${b.c}"),
        ("a=x: y # z", "a", "x: y # z"),
        ("a=archon:(attn:d1p4t2c2|ffn:d1p4t1e4)", "a", "archon:(attn:d1p4t2c2|ffn:d1p4t1e4)"),
        ("a=*x", "a", "*x"),
        ("a=off", "a", "off"),
    ],
)
def test_an_override_sets_one_option_to_what_is_written(override: str, option: str, value: str) -> None:
    node = parse_override(override).get(option)
    assert node is not None
    assert shown(node) == value
    assert node.source == f"override {override!r}"


def test_null_is_null_and_nothing_is_the_empty_text() -> None:
    tree = parse_overrides(["a=null", "b=", "c='null'"])
    nulls = {key: node.is_null for key, node in tree.entries.items() if isinstance(node, RawScalar)}
    assert nulls == {"a": True, "b": False, "c": False}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "found no '='; write name.of.option=value"),
        ("=1", "found an empty option name"),
        ("a..b=1", "found an empty option name"),
        (".a=1", "found an empty option name"),
        ("a b=1", "found the option name 'a b'"),
        ("~a.b", "options cannot be deleted"),
        ("--a=1", "found a flag where an override is expected"),
        ("a.0=1", "lists are replaced as a whole"),
        ("a[0]=1", "lists are replaced as a whole"),
        ("a=[1, 2", "invalid YAML"),
        ("a='open", "invalid YAML"),
        ("a={b:1}", "found 'b:1' without a space after the colon"),
    ],
)
def test_a_malformed_override_is_refused_and_quoted(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_override(override)
    assert str(error.value).startswith(f"override {override!r}")
    assert message in str(error.value)


def test_a_later_override_wins_and_sections_are_merged() -> None:
    tree = parse_overrides(["a.b=1", "a.c=2", "a.b=3", "a={d: 4}"])
    assert shown(tree) == "{a: {b: 3, c: 2, d: 4}}"


def test_an_override_replaces_lists_and_fills_in_nulls() -> None:
    tree = parse_yaml("a: [1, 2]\nb: null\nc: {d: 1}\n", "f")
    assert shown(merge(tree, parse_overrides(["a=[3]", "b.x=1", "c=null"]))) == "{a: [3], b: {x: 1}, c: null}"


@pytest.mark.parametrize("text", ["ref: ${actor}", "ref: text", "ref: [1]"])
def test_a_part_of_a_single_value_cannot_be_set(text: str) -> None:
    with pytest.raises(ConfigError, match=r"override 'ref.path=x': sets a part of ref, which is .* \(f:1\)"):
        merge(parse_yaml(text, "f"), parse_overrides(["ref.path=x"]))


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20))
def test_a_value_that_opens_nothing_is_taken_as_it_stands(value: str) -> None:
    if value.strip()[:1] not in ("[", "{", "'", '"'):
        assert shown(parse_override(f"a={value}").entries["a"]).rstrip(".") in (value.strip().rstrip("."), "null")


@given(st.permutations(["seed=1", "actor.path=m", "ref.path=r", "actor.mb_spec={n_mbs: 2}", "gconfig.top_k=3"]))
def test_overrides_of_different_options_commute(overrides: list[str]) -> None:
    assert parse_overrides(overrides) == parse_overrides(sorted(overrides))
