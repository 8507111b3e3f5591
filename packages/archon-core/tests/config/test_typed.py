import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from archon_core.config.raw import RawList, RawMapping, RawScalar
from archon_core.config.typed import convert, describe, knows, untyped
from archon_core.config.yaml_file import parse_yaml


class Colour(enum.Enum):
    red = 1


@dataclass
class Inner:
    x: int = 0


@dataclass
class Options:
    text: str = ""
    maybe_text: str | None = None
    integer: int = 0
    maybe_integer: int | None = None
    number: float = 0.0
    flag: bool = False
    names: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)
    anything: Any = None
    choice: Literal["a", "b", 3] = "a"
    either: int | str = 0
    colour: Colour = Colour.red
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def read(text: str) -> dict[str, Any]:
    converted = convert(parse_yaml(text, "f"), Options)
    assert not converted.problems, converted.problems
    return converted.values


def problems(text: str) -> list[str]:
    return [str(problem) for problem in convert(parse_yaml(text, "f"), Options).problems]


@pytest.mark.parametrize("text", ["off", "1e4", "012", "1:30", "true", "nan", "2020-01-01", "'null'", "'~'"])
def test_a_text_option_takes_the_text_as_it_stands(text: str) -> None:
    assert read(f"text: {text}") == {"text": text.strip("'")}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("integer: 012", 12),
        ("integer: '7'", 7),
        ("integer: -3", -3),
        ("integer: 1_000", 1000),
        ("number: 1e-5", 1e-5),
        ("number: 1.70e-5", 1.7e-5),
        ("number: 3", 3.0),
        ("number: .5", 0.5),
        ("number: .inf", math.inf),
        ("flag: off", False),
        ("flag: Yes", True),
        ("flag: 1", True),
        ("maybe_text: null", None),
        ("maybe_text: ''", ""),
        ("maybe_integer: ~", None),
        ("text:", ""),
        ("names: [off, 1e4]", ["off", "1e4"]),
        ("sizes: {a: 1}", {"a": 1}),
        ("choice: 3", 3),
        ("either: 4", 4),
        ("either: four", "four"),
        ("colour: red", Colour.red),
        ("path: a/b", "a/b"),
        ("maybe: null", None),
        ("maybe: {}", {}),
        ("inner:", {}),
        ("anything: [1, 1.5, x, null, true, off, 'off']", [1, 1.5, "x", None, True, False, "off"]),
        ("free: {a: 012, b: {c: 1e-3, d: '1'}}", {"a": "012", "b": {"c": 1e-3, "d": "1"}}),
    ],
)
def test_each_type_reads_its_own_texts(line: str, value: object) -> None:
    assert list(read(line).values()) == [value]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("integer: 1.5", "integer: found '1.5'; allowed is a whole number"),
        ("integer: 1e4", "integer: found '1e4'; allowed is a whole number; write 10000"),
        ("integer: null", "integer: found null; allowed is a whole number"),
        ("integer: {a: 1}", "integer: found a section; allowed is a whole number"),
        ("integer: [1]", "integer: found a list; allowed is a whole number"),
        ("number: nan", "number: found 'nan'; allowed is a number"),
        ("flag: maybe", "flag: found 'maybe'; allowed is true or false"),
        ("text: null", "text: found null; allowed is a text (in quotes for 'null')"),
        ("names: one", "names: found 'one'; allowed is a list of texts"),
        ("names: [[a]]", "names: found a list; allowed is a list of texts"),
        ("maybe_integer: x", "maybe_integer: found 'x'; allowed is a whole number or null"),
        ("choice: c", "choice: found 'c'; allowed is 'a' or 'b' or 3"),
        ("colour: blue", "colour: found 'blue'; allowed is 'red'"),
        ("inner: 3", "inner: found '3'; allowed is a section"),
        ("inner: null", "inner: found null; allowed is a section"),
        ("integer: ???", "integer: found '???', which stands for a value to give; give one, such as integer=VALUE"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_found_and_what_is_allowed(line: str, message: str) -> None:
    (problem,) = problems(line)
    assert problem.startswith(f"f:1: {message}")


def test_all_problems_of_a_file_are_found_at_once_in_its_order() -> None:
    found = problems("integr: 1\ninner:\n  y: 2\nflag: x\nfree: {any: thing}\n")
    assert found == [
        "f:1: unknown option integr; did you mean 'integer'?",
        "f:3: unknown option inner.y; known in inner: x",
        "f:4: flag: found 'x'; allowed is true or false",
    ]


BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
SPELLINGS = [(form(word), value) for word, value in BOOLEANS.items() for form in (str.lower, str.capitalize, str.upper)]


@pytest.mark.parametrize(("text", "value"), SPELLINGS)
def test_a_boolean_is_spelt_in_a_free_section_as_in_a_typed_option_and_as_yaml_reads_it(text: str, value: bool) -> None:
    assert yaml.safe_load(text) is value
    assert read(f"flag: {text}") == {"flag": value}
    assert read(f"free: {{a: {text}, b: '{text}'}}") == {"free": {"a": value, "b": text}}


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("maybe_text: None", "maybe_text"),
        ("anything: None", "anything"),
        ("free: {a: {b: None}}", "free.a.b"),
        ("free: {a: [x, None]}", "free.a"),
    ],
)
def test_pythons_none_is_refused_wherever_it_would_become_a_text_in_place_of_null(line: str, option: str) -> None:
    assert problems(line) == [
        f"f:1: {option}: found None, which YAML takes for a text; write null, or 'None' in quotes if you mean the text"
    ]
    assert read(line.replace("None", "'None'"))
    assert read(line.replace("None", "null"))


def test_a_dotted_name_in_a_file_is_explained() -> None:
    (problem,) = problems("inner.xxxxxxx: 1")
    assert "nest the names" in problem


def test_references_pass_whatever_the_type() -> None:
    text = "integer: ${a.b}\nflag: ${c}\ninner: ${maybe}\nnames: ['${x}', b]\nfree: {y: '${z}'}"
    values = read(text)
    assert values == {
        "integer": "${a.b}",
        "flag": "${c}",
        "inner": "${maybe}",
        "names": ["${x}", "b"],
        "free": {"y": "${z}"},
    }


def test_written_options_and_sections_are_known_with_their_lines() -> None:
    converted = convert(parse_yaml("inner:\n  x: 1\nmaybe: {}\n", "f"), Options)
    assert converted.written == {"inner": "f:1", "inner.x": "f:2", "maybe": "f:3"}


@pytest.mark.parametrize(
    ("path", "known"),
    [("inner.x", True), ("maybe.x", True), ("free.a.b", True), ("inner.y", False), ("nope", False), ("text.x", False)],
)
def test_the_schema_knows_its_options_and_everything_in_free_sections(path: str, known: bool) -> None:
    assert knows(Options, path) is known


def test_types_are_described_in_words() -> None:
    assert describe(list[int] | None) == "a list of whole numbers or null"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def to_raw(value: Any) -> RawScalar | RawList | RawMapping:
    if isinstance(value, dict):
        return RawMapping({key: to_raw(child) for key, child in value.items()})
    if isinstance(value, list):
        return RawList(tuple(to_raw(item) for item in value))
    return RawScalar("null" if value is None else repr(value).lower())


@given(json_like)
def test_free_sections_read_numbers_booleans_and_null_as_json_does(value: Any) -> None:
    assert untyped(to_raw(value)) == value


@given(st.integers())
def test_every_integer_is_read_from_its_digits(value: int) -> None:
    assert read(f"integer: {value}") == {"integer": value}


@given(st.floats(allow_nan=False))
def test_every_float_is_read_from_its_repr(value: float) -> None:
    assert read(f"number: {value!r}") == {"number": value}
