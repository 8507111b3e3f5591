"""Text to token ids. The oracle is ``transformers``: ``encode`` and ``apply_chat_template(tokenize=True)``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from archon_core.errors import DataError
from archon_engine.models.text import encode_texts, encode_with_offsets, render_chat

END = "<|endoftext|>"
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = "what is two and three the answer"


def byte_level(*, begins: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; ``begins`` puts ``END`` before each text, as its post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def words(unknown: str = "<unk>", begin: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word of ``WORDS``; every other word is unknown. ``begin`` stands before each text."""
    names = dict.fromkeys([unknown, begin or unknown, *WORDS.split()])
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([unknown])
    if begin:
        first = (begin, tokenizer.token_to_id(begin))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[first])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=begin)


ONE_FOR_ALL = byte_level(begins=True, unk_token=END, bos_token=END, eos_token=END)
WORD_FOR_ALL = words("<all>", begin="<all>")
PIECES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from([END, "<|user|>"])


@settings(max_examples=60)
@given(st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=5))
def test_a_token_that_is_unknown_begin_and_end_at_once_is_what_transformers_makes_of_it(texts):
    for special in (True, False):
        expected = [tuple(ONE_FOR_ALL.encode(text, add_special_tokens=special)) for text in texts]
        assert encode_texts(ONE_FOR_ALL, texts, add_special_tokens=special) == expected
        assert [encode_texts(ONE_FOR_ALL, [text], add_special_tokens=special)[0] for text in texts] == expected


def test_a_chat_template_that_writes_the_unknown_token_as_begin_of_text_is_what_transformers_makes_of_it():
    tokenizer = byte_level(unk_token=END, bos_token=END, eos_token=END)
    tokenizer.chat_template = CHAT
    messages = [{"role": "user", "content": "what is two and three"}]
    text = render_chat(tokenizer, messages, generation_prompt=True, fix="")
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert encode_texts(tokenizer, [text], add_special_tokens=False) == [tuple(expected)]
    assert expected[0] == tokenizer.unk_token_id == tokenizer.bos_token_id


@pytest.mark.parametrize("tokenizer", [words(), words(begin="<s>"), WORD_FOR_ALL], ids=["plain", "begins", "one"])
def test_text_without_a_token_is_refused_and_quoted(tokenizer):
    [ids] = encode_texts(tokenizer, ["what is two"], add_special_tokens=True)
    assert list(ids) == tokenizer.encode("what is two")
    with pytest.raises(DataError, match=r"text 'what is four': the tokenizer has no token for 'four', .*; mend it"):
        encode_texts(tokenizer, ["what", "what is four"], add_special_tokens=True, fix="mend it")


class SlowTokenizer:
    """A tokenizer without offsets, that reads the name of its unknown token as that token."""

    unk_token_id, unk_token, is_fast = 0, "<unk>", False

    def encode(self, text, add_special_tokens):
        known = {"<unk>": 0, "what": 1, "is": 2}
        return [0] * add_special_tokens + [known.get(word, 0) for word in text.split()]


def test_a_tokenizer_without_offsets_refuses_the_same_text():
    slow = SlowTokenizer()
    assert encode_texts(slow, ["what is <unk>"], add_special_tokens=True) == [(0, 1, 2, 0)]
    with pytest.raises(DataError, match="has no token for part of it"):
        encode_texts(slow, ["what is four"], add_special_tokens=True)
    with pytest.raises(DataError, match=r"SlowTokenizer: found no character offsets, .* use a fast tokenizer"):
        encode_with_offsets(slow, "what is")


def test_offsets_lead_back_to_the_text():
    text = f"two and{END}three"
    ids, offsets = encode_with_offsets(ONE_FOR_ALL, text)
    assert list(ids) == ONE_FOR_ALL.encode(text, add_special_tokens=False)
    assert END in [text[start:end] for start, end in offsets]


@pytest.mark.parametrize("text", ["a\ud83d", "\ude00", "caf\udce9"])
def test_half_of_a_surrogate_pair_is_refused(text):
    with pytest.raises(DataError, match=r"an unpaired surrogate or a byte that is not UTF-8"):
        encode_texts(ONE_FOR_ALL, ["fine", text], add_special_tokens=True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('a system message must come first') }}", "a system message must come first"),
        ("{% for m in messages %}{{ m.content }}", "Unexpected end of template"),
        ("{{ tools.names() }}", "'tools' is undefined|has no attribute"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate"),
        ("{{ messages[0].__class__.__mro__ }}", "access to attribute '__class__' of 'dict' object is unsafe"),
        ("{{ messages.append(1) }}", "is not safely callable|is unsafe"),
    ],
    ids=["raises", "syntax", "undefined", "arithmetic", "types", "sandbox", "immutable"],
)
def test_what_a_chat_template_raises_is_quoted_with_the_fix(template, reason):
    tokenizer = byte_level(eos_token=END)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=rf"chat template.* failed on .* roles user: .*({reason}).*; do this"):
        render_chat(tokenizer, [{"role": "user", "content": "two"}], generation_prompt=True, fix="do this")
