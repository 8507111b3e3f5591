"""Fingerprints follow the content of records, tokenizers and rewards, and nothing else."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from archon_rl.rewards.source import RewardSource
from archon_rl.rewards.source_fingerprint import function_fingerprint
from archon_rl.tokenization import bpe_tokenizer
from archon_rl.trainer.fingerprint import records_fingerprint, template_fingerprint, tokenizer_fingerprint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
records = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=4)


def kinds(value):
    """The value with the type of every number, since 1, 1.0 and True are equal in Python and no equal records."""
    if isinstance(value, dict):
        return {key: kinds(child) for key, child in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    return type(value).__name__, repr(value)


@given(records, records)
def test_records_have_the_same_fingerprint_exactly_when_they_are_equal(first, second):
    same = records_fingerprint(first).digest == records_fingerprint(second).digest
    assert same == (kinds(first) == kinds(second))


@given(records)
def test_the_order_of_fields_does_not_count(given_records):
    turned = [dict(reversed(record.items())) for record in given_records]
    assert records_fingerprint(turned) == records_fingerprint(given_records)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"a": "1"}, {"a": "2"}], [{"a": "2"}, {"a": "1"}]),
        ([{"a": "1"}], [{"a": 1}]),
        ([{"a": 1}], [{"a": True}]),
        ([{"a": 1}], [{"a": 1.0}]),
        ([{"a": None}], [{}]),
        ([{"a": "x\n"}], [{"a": "x"}]),
        ([{"a": "\ud800"}], [{"a": "\ud801"}]),
        ([{"a": 10**5000}], [{"a": 10**5000 + 1}]),
        ([{"a": datetime.date(2020, 1, 1)}], [{"a": datetime.date(2020, 1, 2)}]),
        ([{1: "a", "b": 2}], [{1: "a", "b": 3}]),
        ([{"a": b"\0"}], [{"a": b"\1"}]),
    ],
)
def test_records_that_differ_in_any_way_have_other_fingerprints(one, other):
    assert records_fingerprint(one).digest != records_fingerprint(other).digest
    assert records_fingerprint(one) == records_fingerprint(one)


def test_a_tokenizer_keeps_its_fingerprint_on_disk_and_while_it_is_used(tmp_path):
    tokenizer = bpe_tokenizer(["what is 2 + 3?"], 300)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)).digest == before.digest
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_tokens(["<new>"]),
        lambda t: setattr(t, "eos_token", "<pad>"),
        lambda t: setattr(t, "split_special_tokens", False),
        lambda t: setattr(t.backend_tokenizer, "normalizer", __import__("tokenizers").normalizers.Lowercase()),
        lambda t: setattr(t.backend_tokenizer, "post_processor", None),
    ],
    ids=["a token", "the end of text", "special tokens in texts", "normalisation", "tokens at the start"],
)
def test_whatever_changes_ids_changes_a_tokenizers_fingerprint(change):
    tokenizer = bpe_tokenizer(["what is 2 + 3?"], 300)
    before = tokenizer_fingerprint(tokenizer)
    change(tokenizer)
    assert tokenizer_fingerprint(tokenizer).digest != before.digest


def test_a_template_is_no_part_of_the_tokenizers_fingerprint_but_has_its_own():
    tokenizer = bpe_tokenizer(["what is 2 + 3?"], 300)
    before = tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(tokenizer) == before[0]
    assert template_fingerprint(tokenizer).digest != before[1].digest
    named = SimpleNamespace(chat_template={"default": "a", "tool": "b"})
    assert template_fingerprint(named).digest != template_fingerprint(tokenizer).digest


def test_two_rewards_of_one_module_have_their_own_fingerprints_and_built_in_ones_go_by_version():
    import archon_rl.rewards.gsm8k  # noqa: F401 - the module must be there

    one, other = (RewardSource("r", f"archon_rl.rewards.gsm8k:{name}", origin="archon-rl") for name in "ab")
    assert function_fingerprint(one).digest != function_fingerprint(other).digest
    assert function_fingerprint(one).about.startswith("reward 'r' of archon-rl ")
    built_in = RewardSource("r", "builtins:len", origin="archon-rl")
    assert function_fingerprint(built_in).digest != function_fingerprint(RewardSource("r", "builtins:len")).digest
