"""Conversations. The oracle is ``transformers``: ids of ``apply_chat_template``, and its mask of marked templates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.errors import DataError
from archon_rl.conversations import encode_conversation
from archon_rl.text_encoding import TextEncoder, supervised_batch

sys.path.insert(0, str(Path(__file__).parent))

from chat_tokenizers import CHATML, END, LAST_TURN_THINKS, MARKED, PLAIN, TURN_END, chat_tokenizer

TOKENIZERS = {name: chat_tokenizer(t) for name, t in (("chatml", CHATML), ("marked", MARKED), ("plain", PLAIN))}
THINKS = chat_tokenizer(LAST_TURN_THINKS)

CONTENT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [f"a{TURN_END}\nb", f"<|im_start|>assistant\nno{TURN_END}", "  spaced  ", "\n\n", "🙂é", END]
)
TURNS = st.lists(
    st.tuples(CONTENT, CONTENT).map(
        lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    ),
    min_size=1,
    max_size=3,
).map(lambda pairs: [message for pair in pairs for message in pair])


def turn(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def trained_text(tokenizer, record, prompt_key="messages", answer_key=None) -> str:
    [example] = TextEncoder(tokenizer, prompt_key, answer_key).encode_examples([record])
    return tokenizer.decode([i for i, trained in zip(example.ids, example.trained, strict=True) if trained])


@settings(max_examples=150)
@given(TURNS)
def test_ids_are_those_of_transformers_and_the_mask_that_of_its_marked_template(messages):
    marked = TOKENIZERS["marked"].apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    for name in ("chatml", "marked"):
        ids, trained = encode_conversation(TOKENIZERS[name], tuple(messages))
        assert list(ids) == marked["input_ids"], name
        assert [int(t) for t in trained] == marked["assistant_masks"], name


@settings(max_examples=100)
@given(TURNS)
def test_ids_are_those_of_transformers_without_special_tokens_too(messages):
    tokenizer = TOKENIZERS["plain"]
    ids, _ = encode_conversation(tokenizer, tuple(messages))
    assert list(ids) == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_every_turn_of_the_assistant_is_trained_on_and_nothing_else():
    messages = [{"role": "system", "content": "short"}, *turn("2+3?", "five"), *turn("3+3?", "six")]
    assert trained_text(TOKENIZERS["chatml"], {"messages": messages}) == f"five{TURN_END}six{TURN_END}"
    assert trained_text(TOKENIZERS["marked"], {"messages": messages}) == f"five{TURN_END}six{TURN_END}"
    assert trained_text(TOKENIZERS["plain"], {"messages": messages}) == " five\n\n six\n\n"


def test_the_white_space_that_a_template_writes_after_the_end_of_a_turn_is_not_trained_on():
    text = trained_text(chat_tokenizer(CHATML, eos=END), {"messages": turn("2+3?", "five \n")})
    assert text == f"five \n{TURN_END}"


@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_of_a_prompt_and_a_completion_only_the_completion_is_trained_on(name):
    record = {"prompt": [*turn("2+3?", "five"), {"role": "user", "content": "3+3?"}]}
    record["completion"] = [{"role": "assistant", "content": "six"}]
    assert trained_text(TOKENIZERS[name], record, "prompt", "completion") == f"six{TURN_END}"


def test_a_text_and_one_message_are_the_same_prompt():
    encoder = TextEncoder(TOKENIZERS["chatml"], "prompt", "answer")
    text = {"prompt": "2+3?", "answer": "5"}
    messages = {"prompt": [{"role": "user", "content": "2+3?"}], "answer": "5"}
    assert encoder.encode_prompt(messages) == encoder.encode_prompt(text)
    assert encoder.prompt(messages) == encoder.prompt(text) == "2+3?"
    assert encoder.encode_examples([messages]) == encoder.encode_examples([text])


def test_prompts_for_a_rollout_are_those_of_transformers_with_a_generation_prompt():
    tokenizer = TOKENIZERS["chatml"]
    messages = [*turn("2+3?", "five"), {"role": "user", "content": "3+3?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(TextEncoder(tokenizer, "prompt", None).encode_prompt({"prompt": messages})) == expected


def test_the_loss_mask_of_a_batch_yields_the_trained_tokens_as_targets():
    tokenizer = TOKENIZERS["chatml"]
    records = [{"m": turn("2+3?", "five")}, {"m": turn("a", "b") + turn("c", "d")}, {"m": "2+3?", "a": "5"}]
    batch = supervised_batch(TextEncoder(tokenizer, "m", "a"), records)
    texts = [f"five{TURN_END}", f"b{TURN_END}d{TURN_END}", f"5{TURN_END}"]
    for i, text in enumerate(texts):
        row = batch.select([i])
        assert tokenizer.decode(row.targets[row.token_fields["loss_mask"]].tolist()) == text


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_hides_what_was_written():
    last = {"messages": turn("2+3?", "five")}
    assert trained_text(THINKS, last) == f"<think>\n\n</think>\n\nfive{TURN_END}"
    both = turn("2+3?", "five") + turn("3+3?", "six")
    with pytest.raises(
        DataError, match=r"message 2 \(assistant\): the chat template renders .* differently .*generation"
    ):
        trained_text(THINKS, {"messages": both})
    split = {"prompt": both[:-1], "completion": both[-1:]}
    assert trained_text(THINKS, split, "prompt", "completion") == f"<think>\n\n</think>\n\nsix{TURN_END}"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"p": [{"role": "user", "content": "a"}]}, "found a prompt without an answer to train on"),
        ({"p": "a", "c": [{"role": "user", "content": "b"}]}, "found no assistant turn to train on among user"),
        ({"p": turn("a", "b"), "c": "5"}, "ends with the assistant's turn, and another answer in 'c'"),
    ],
)
def test_a_record_with_nothing_to_train_on_is_refused(record, message):
    encoder = TextEncoder(TOKENIZERS["chatml"], "p", "c" if "c" in record else None)
    with pytest.raises(DataError, match=message):
        encoder.encode_examples([record])


def test_a_rollout_refuses_a_conversation_that_the_assistant_has_ended():
    with pytest.raises(DataError, match=r"ends with the assistant's turn, which leaves no answer .* algorithm=sft"):
        TextEncoder(TOKENIZERS["chatml"], "p", None).encode_prompt({"p": turn("a", "b")})


@pytest.mark.parametrize(("template", "use"), [(None, True), (CHATML, False)])
def test_messages_need_a_chat_template(template, use):
    encoder = TextEncoder(chat_tokenizer(template), "p", None, use_chat_template=use)
    for read in (encoder.encode_prompt, lambda record: encoder.encode_examples([record])):
        prompt = turn("a", "b")[: 1 if read == encoder.encode_prompt else 2]
        with pytest.raises(DataError, match=r"found messages, which need a chat template, and .* tokenizer"):
            read({"p": prompt})


def test_markers_that_enclose_nothing_are_refused():
    empty = chat_tokenizer(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")
    with pytest.raises(DataError, match=r"markers of the chat template enclose no text of the assistant"):
        trained_text(empty, {"messages": turn("a", "b")})


def test_a_template_that_refuses_a_lone_user_message_names_the_option():
    tokenizer = chat_tokenizer("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}")
    encoder = TextEncoder(tokenizer, "p", "c")
    with pytest.raises(
        DataError, match=r"failed on messages with the roles user: system first; set tokenizer\.use_chat_template=f"
    ):
        encoder.encode_prompt({"p": "2+3?"})
    with pytest.raises(DataError, match=r"failed on messages with the roles user: system first; .* correct the record"):
        encoder.encode_prompt({"p": [{"role": "user", "content": "2+3?"}]})


def test_a_conversation_that_begins_with_the_assistant_needs_markers():
    first = {"messages": [{"role": "assistant", "content": "hello"}, *turn("2+3?", "five")]}
    with pytest.raises(DataError, match=r"message 1 \(assistant\): found no message before the assistant's turn"):
        trained_text(TOKENIZERS["chatml"], first)
