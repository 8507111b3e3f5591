"""Token ids between two turns: the template's text, encoded apart from the history."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from archon_core.errors import DataError
from archon_engine.models.turns import encode_next_text, encode_next_turn

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% if tools %}tools: {{ tools | length }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITHOUT_HISTORY = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}:{% endif %}"
AGAIN = [{"role": "user", "content": "again"}]


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [END, START, STOP, *alphabet]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START, STOP])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP)
    fast.chat_template = template
    return fast


@pytest.mark.parametrize(
    ("template", "answer", "between"),
    [
        (CHATML, f"3{STOP}", "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, "3 and", f"{STOP}\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, f"3{END}", f"{STOP}\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        (PLAIN, "3", "\n\nUSER: again\n\nASSISTANT:"),
        (PLAIN, "3\n", "\n\nUSER: again\n\nASSISTANT:"),
    ],
    ids=["ended", "cut off", "ended by another token", "no special tokens", "ends as the template goes on"],
)
def test_the_templates_text_after_an_answer_is_appended_without_a_second_end_of_turn(template, answer, between):
    tokenizer = byte_tokenizer(template)
    ids = tokenizer.encode(answer)
    assert tokenizer.decode(encode_next_turn(tokenizer, ids, AGAIN)) == between


def test_a_conversation_grows_to_what_the_template_renders():
    tokenizer = byte_tokenizer(CHATML)
    question = [{"role": "user", "content": "1 + 1"}]
    prompt = tokenizer.encode(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    answer = tokenizer.encode(f"3{STOP}")
    grown = (*prompt, *answer, *encode_next_turn(tokenizer, (*prompt, *answer), AGAIN))
    whole = [*question, {"role": "assistant", "content": "3"}, *AGAIN]
    assert tokenizer.decode(grown) == tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)


def test_tools_do_not_change_the_text_after_an_answer():
    tokenizer = byte_tokenizer(CHATML)
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [{"role": "tool", "content": "2"}]
    assert tokenizer.decode(encode_next_turn(tokenizer, (), messages, tools=tools)) == (
        f"{STOP}\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_leaves_out_answers_is_refused():
    with pytest.raises(DataError, match="the chat template shows no assistant message as it is written"):
        encode_next_turn(byte_tokenizer(WITHOUT_HISTORY), (), AGAIN)


@pytest.mark.parametrize(("answer", "between"), [(f"3{STOP}", "again"), ("3", f"{STOP}again")])
def test_plain_text_follows_the_end_of_text(answer, between):
    tokenizer = byte_tokenizer(None)
    assert tokenizer.decode(encode_next_text(tokenizer, tokenizer.encode(answer), "again")) == between
