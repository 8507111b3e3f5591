"""Values of Hugging Face data sets follow the same rules as those of files, and errors name the record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archon_core.errors import DataError
from archon_rl.datasets.hf import HuggingFaceDataset
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.sequence_lengths import example_lengths, measure_lengths, prompt_lengths

sys.path.insert(0, str(Path(__file__).parent))

from chat_tokenizers import CHATML, TURN_END, chat_tokenizer

datasets = pytest.importorskip("datasets", reason="the optional dependency datasets is not installed")


def dataset(rows: list[dict]) -> HuggingFaceDataset:
    return HuggingFaceDataset(datasets.Dataset.from_list(rows), "data set 'a', split 'train'")


def test_conversations_in_columns_are_those_in_files():
    tokenizer = chat_tokenizer(CHATML)
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": 1},
        {"messages": [{"role": "user", "content": "c", "name": "me"}, {"role": "assistant", "content": "d"}], "n": 2},
    ]
    encoder = TextEncoder(tokenizer, "messages", None)
    # In columns the first message has a name too, which is empty.
    assert dataset(rows)[0]["messages"][0]["name"] is None
    examples = encoder.encode_examples([dataset(rows)[0], dataset(rows)[1]])
    assert examples == encoder.encode_examples(rows)
    ids, trained = examples[0].ids, examples[0].trained
    assert tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t]) == f"b{TURN_END}"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"q": "a", "a": "1"}, {"q": None, "a": "2"}], r"data\.prompt_key='q': found null"),
        ([{"q": "a", "a": 1.0}, {"q": "b", "a": float("nan")}], r"data\.answer_key='a': found nan"),
        ([{"q": "a", "a": ["1"]}, {"q": "b", "a": []}], r"data\.answer_key='a', message 1: found text in a list"),
        ([{"q": "a", "a": True}] * 2, r"data\.answer_key='a': found true"),
    ],
)
@pytest.mark.parametrize("measure", [prompt_lengths, example_lengths])
def test_values_that_are_not_text_are_errors_that_name_the_record(rows, found, measure):
    with pytest.raises(DataError, match=rf"data set 'a', split 'train', record [01] \(counted from 0\): {found}"):
        measure_lengths(dataset(rows), TextEncoder(chat_tokenizer(CHATML), "q", "a"), measure)


def test_a_record_that_cannot_be_decoded_is_named():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("truncated image")

    with pytest.raises(DataError, match=r"part, record 0 \(counted from 0\): .* could not decode it: truncated image"):
        HuggingFaceDataset(Broken([1]), "part")[0]
