"""Values, comments and texts as Python source."""

import ast

import pytest

from archon_scaffold.rendering import TEMPLATES, comment, literal, quoted

VALUES = [
    None,
    True,
    3,
    1e-06,
    'a "b" \\ c',
    {"a": [1, 2.5, None], "b": {"c": "d"}},
    ["full_attention", "sliding_attention"] * 9,
    {f"entry_{number}": {"rope_type": "llama3", "factors": [1.0] * 20} for number in range(3)},
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("indent", [0, 8])
def test_a_literal_is_the_value_in_lines_that_fit(value, indent):
    text = literal(value, indent, "name")
    assert ast.literal_eval(text) == value
    assert all(len(line) <= 120 for line in text.splitlines())


def test_numbers_that_are_not_finite_are_written_too():
    assert literal({"a": [float("inf"), -float("inf")]}) == '{"a": [float("inf"), float("-inf")]}'


def test_long_texts_become_lines_that_fit():
    text = "one 'quoted' \"word\" after another and more of them " * 6
    lines = (" " * 8 + quoted(text, 8)).splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 120 for line in lines)
    assert " ".join(ast.literal_eval(f"[{quoted(text, 8)}]")) == text.strip()
    lines = (" " * 8 + comment(text, 8)).splitlines()
    assert all(line.startswith("        # ") and len(line) <= 120 for line in lines)
    assert " ".join(line[10:] for line in lines) == text.strip()


def test_no_template_is_a_python_file_which_installers_would_compile():
    assert not [path.name for path in TEMPLATES.rglob("*.py")]
