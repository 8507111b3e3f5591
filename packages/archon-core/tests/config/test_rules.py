"""How messages and decisions show values."""

import pytest
import yaml

from archon_core.config.rules import shown_value, written_value


@pytest.mark.parametrize("text", ["null", "true", "{a: [1, false], b: null}", "[]", "0.5"])
def test_values_are_written_as_in_a_file(text):
    assert written_value(yaml.safe_load(text)) == text


def test_messages_quote_texts_and_shorten_long_values():
    assert (shown_value("a"), shown_value(None), shown_value([True, ""])) == ("'a'", "null", "[true, '']")
    assert shown_value("x" * 300).endswith("... (300 characters)")
