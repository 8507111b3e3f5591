"""Stop texts are found where a whole decoding of the completion shows them first, whatever the tokens are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_rollout.stop_texts import StopTextMatcher, stop_suffix

PIECES = ["a", "b", " a", "ab", "ba b", "", "\n", "é".encode()[:1], "é".encode()[1:], "€".encode()[:2], b"\xac"]
"""Text or bytes of each token."""


def byte_decode(ids):
    pieces = (PIECES[i] for i in ids)
    raw = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)
    return raw.decode("utf-8", errors="replace")


def stripping_decode(ids):
    """As a tokenizer that marks words by leading spaces decodes: the first space of a text is dropped."""
    return byte_decode([i for i in ids if isinstance(PIECES[i], str)]).removeprefix(" ")


def first_end(ids, texts, decode, minimum):
    """Oracle: number of tokens after which the decoded completion first has a stop text that was not there before."""
    for n in range(1, len(ids) + 1):
        before, after = decode(ids[: n - 1]), decode(ids[:n])
        if n > minimum and any(after.count(text) and after.rfind(text) + len(text) > len(before) for text in texts):
            return n
    return None


def found_end(ids, texts, decode, minimum):
    matcher = StopTextMatcher(texts, decode, minimum)
    return next((n for n, token in enumerate(ids, 1) if matcher.add(token) is not None), None)


TEXTS = st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=3)


@given(
    ids=st.lists(st.sampled_from([i for i, piece in enumerate(PIECES) if isinstance(piece, str)]), max_size=12),
    texts=TEXTS,
    minimum=st.integers(0, 4),
    decode=st.sampled_from([byte_decode, stripping_decode]),
)
def test_a_stop_text_is_found_at_the_token_that_completes_it(ids, texts, minimum, decode):
    end = first_end(ids, texts, decode, minimum)
    assert found_end(ids, texts, decode, minimum) == end
    if end is not None:
        suffix = stop_suffix(ids[:end], texts, decode, minimum)
        text = decode(ids[:end])
        assert text.endswith(suffix)
        assert suffix.startswith(tuple(texts))
        if not minimum:
            assert len(text) - len(suffix) == min(text.find(stop) for stop in texts if stop in text)


@pytest.mark.parametrize(("ids", "stop"), [((0, 7, 8, 1), "é"), ((0, 9, 10, 1), "€"), ((0, 9, 10, 1), "a€")])
def test_a_character_of_several_tokens_completes_a_stop_text(ids, stop):
    assert found_end(ids, [stop], byte_decode, 0) == 3


def test_bytes_that_never_become_a_character_do_not_hide_a_stop_text():
    ids = [10] * 9 + [0, 1]
    assert found_end(ids, ["ab"], byte_decode, 0) == len(ids)


def test_without_stop_texts_or_tokens_there_is_no_suffix():
    assert stop_suffix([0, 1], None, byte_decode) is None
    assert stop_suffix([], ["a"], byte_decode) is None
    assert stop_suffix([0, 1], ["a"], byte_decode) is None, "only the last token may complete it"
