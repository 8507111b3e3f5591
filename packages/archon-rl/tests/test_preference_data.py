"""Preferences in records: the forms of data, the prompt that two answers share, and errors that name the record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from archon_core.errors import DataError
from archon_rl.datasets.jsonl import read_jsonl
from archon_rl.losses.preference import PAIRS
from archon_rl.preference_encoding import (
    PreferenceEncoder,
    build_encoder,
    chosen_batch,
    longest_of_pair,
    pair_lengths,
    preference_batch,
)
from archon_rl.preference_fields import PreferenceFields
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer
from archon_rl.trainer.sequence_lengths import measure_lengths

sys.path.insert(0, str(Path(__file__).parent))

from chat_tokenizers import CHATML, chat_tokenizer

FIELDS = PreferenceFields("prompt", "chosen", "rejected")
CHARACTERS = characters_tokenizer(["0123456789+=? \n:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz."])
USER, YES, NO = ({"role": r, "content": c} for r, c in (("user", "2+3?"), ("assistant", "5."), ("assistant", "6.")))


def encoder(tokenizer=CHARACTERS, **options) -> PreferenceEncoder:
    return PreferenceEncoder(tokenizer, FIELDS, **options)


def trained_texts(tokenizer, record) -> list[str]:
    """The text of the trained tokens, chosen and rejected."""
    examples = PreferenceEncoder(tokenizer, FIELDS).encode_examples([record])
    return [tokenizer.decode([i for i, t in zip(e.ids, e.trained, strict=True) if t]) for e in examples]


def test_a_prompt_with_two_answers_is_encoded_as_for_supervised_training_with_each():
    records = [{"prompt": "2+3=", "chosen": "5", "rejected": "16"}, {"prompt": "1+1=", "chosen": 2, "rejected": 3}]
    examples = encoder().encode_examples(records)
    for key, found in (("chosen", examples[::2]), ("rejected", examples[1::2])):
        assert found == TextEncoder(CHARACTERS, "prompt", key).encode_examples(records)
    assert trained_texts(CHARACTERS, records[0]) == ["5<eos>", "16<eos>"]


def test_the_batch_holds_the_sequences_of_a_pair_side_by_side():
    records = [{"prompt": "2+3=", "chosen": "5", "rejected": "16"}, {"prompt": "1=", "chosen": "1", "rejected": "2"}]
    batch = preference_batch(encoder(), records)
    assert batch.sequence_fields[PAIRS].tolist() == [0, 0, 1, 1]
    assert batch.lengths == (7, 8, 5, 5)
    assert batch.token_fields["loss_mask"][:7].tolist() == [False] * 4 + [True, True, False]
    assert chosen_batch(encoder(), records).lengths == (7, 5)
    assert longest_of_pair(encoder(), records) == [8, 5]
    assert pair_lengths(encoder(), records) == [15, 10]


def test_dialogues_of_hh_rlhf_share_the_text_up_to_the_turn_in_which_they_differ():
    start = "\n\nHuman: Hi\n\nAssistant: Hi\n\nHuman: Why\n\nAssistant:"
    record = {"chosen": f"{start} I know.", "rejected": f"{start} I dont."}
    assert trained_texts(CHARACTERS, record) == [" I know.<eos>", " I dont.<eos>"]
    chosen, _ = encoder().encode_examples([record])
    assert CHARACTERS.decode(chosen.ids) == f"<bos>{start} I know.<eos>"


def test_dialogues_without_marks_share_their_common_tokens():
    assert trained_texts(CHARACTERS, {"chosen": "2+3=5", "rejected": "2+3=56"}) == ["<eos>", "6<eos>"]
    assert trained_texts(CHARACTERS, {"chosen": "2+3=5", "rejected": "2+3=6"}) == ["5<eos>", "6<eos>"]


def test_a_text_dialogue_is_not_put_into_a_chat_template():
    tokenizer = chat_tokenizer(CHATML)
    start = "\n\nHuman: Hi\n\nAssistant:"
    chosen, _ = encoder(tokenizer).encode_examples([{"chosen": f"{start} A", "rejected": f"{start} B"}])
    assert tokenizer.decode(chosen.ids).startswith(start)


def test_conversations_share_the_messages_before_the_first_that_differs():
    tokenizer = chat_tokenizer(CHATML)
    whole = {"chosen": [USER, YES], "rejected": [USER, NO]}
    split = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    assert encoder(tokenizer).encode_examples([whole]) == encoder(tokenizer).encode_examples([split])
    assert trained_texts(tokenizer, whole) == ["5.<|im_end|>", "6.<|im_end|>"]
    assert trained_texts(tokenizer, {"prompt": "2+3?", "chosen": [YES], "rejected": [NO]})[0] == "5.<|im_end|>"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "1", "chosen": "2"}, r"found no field 'rejected' among 'prompt', 'chosen'; set data\.prompt_key, "),
        ({"prompt": "1", "chosen": "2", "rejected": None}, r"data\.rejected_key='rejected': found null"),
        ({"prompt": "1", "chosen": "2", "rejected": [NO]}, "found text and messages; allowed are two texts or two"),
        (
            {"prompt": [USER, YES], "chosen": "2", "rejected": "3"},
            "ends with the assistant's turn; allowed is one that",
        ),
        ({"chosen": [USER, YES], "rejected": [{"role": "user", "content": "x"}, NO]}, "found no common first message"),
        ({"chosen": [USER, YES], "rejected": [USER]}, "the rejected one ends where the other goes on"),
        ({"chosen": [USER, USER, YES], "rejected": [USER, NO]}, "message 2 of the chosen one.*has the role 'user'"),
        (["2"], "found a list; "),
    ],
)
def test_an_invalid_record_is_an_error_that_names_file_and_line(tmp_path, record, message):
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    file.write_text("\n".join(json.dumps(line) for line in (good, record)))
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: .*{message}"):
        read_jsonl(file, FIELDS)


def test_equal_answers_pass_the_reader_and_are_refused_when_they_are_encoded(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "2"}))
    records = read_jsonl(file, FIELDS)
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: .*found equal values.*data\.equal_pairs=drop"):
        measure_lengths(records, encoder(), longest_of_pair)


def test_the_usual_name_of_the_prompt_is_not_taken_for_a_missing_prompt():
    fields = PreferenceFields("question", "chosen", "rejected")
    with pytest.raises(
        DataError, match=r"found no field 'question', but a field 'prompt'; set data\.prompt_key=prompt"
    ):
        fields.check({"prompt": "1+1=", "chosen": "2", "rejected": "3"})
    assert fields.read({"question": "1+1=", "chosen": "2", "rejected": "3"}).prompt == "1+1="


def test_texts_that_share_no_token_have_no_prompt():
    tokenizer = chat_tokenizer(None)
    with pytest.raises(DataError, match="found no common beginning"):
        encoder(tokenizer).encode_examples([{"chosen": "yes", "rejected": "no"}])


def test_the_options_of_the_data_choose_the_encoder():
    plain = SimpleNamespace(prompt_key="question", answer_key="answer")
    pairs = SimpleNamespace(prompt_key="prompt", answer_key="answer", chosen_key="chosen", rejected_key="rejected")
    assert build_encoder(CHARACTERS, plain) == TextEncoder(CHARACTERS, "question", "answer")
    assert build_encoder(CHARACTERS, pairs) == encoder()
    assert list(build_encoder(None, pairs).texts({"prompt": "1", "chosen": "2", "rejected": "3"})) == ["1", "2", "3"]
