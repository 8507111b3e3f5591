"""Text as its tokens arrive: whole characters, and nothing of a stop text."""

from hypothesis import given
from hypothesis import strategies as st

from archon_rollout.model_limits import ModelLimits
from archon_rollout.server.openai_text import TextSide, TextStream


class ByteTokenizer:
    """One token per byte of UTF-8, so characters may be split between tokens."""

    chat_template = None

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode(errors="replace")


TEXT = TextSide("bytes", ModelLimits(256), ByteTokenizer())


def pieces_of(text: str, stops, sizes):
    stream, ids, pieces = TextStream(TEXT, stops), list(text.encode()), []
    while ids and not stream.is_stopped:
        size = next(sizes, 1)
        part, ids = ids[:size], ids[size:]
        pieces.append(stream.add(part, is_last=not ids))
    return pieces, stream.is_stopped


@given(st.text(alphabet="aäb😀\n", max_size=12), st.lists(st.integers(1, 4), max_size=12))
def test_pieces_make_the_whole_text_without_broken_characters(text, sizes):
    pieces, stopped = pieces_of(text, (), iter(sizes))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert not stopped


@given(
    st.text(alphabet="abä", max_size=14),
    st.lists(st.text(alphabet="abä", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=14),
)
def test_a_text_ends_before_the_first_stop_text_wherever_tokens_divide_it(text, stops, sizes):
    pieces, stopped = pieces_of(text, stops, iter([1] * len(text.encode())))
    assert stopped == any(stop in text for stop in stops)
    whole = "".join(pieces)
    # With one byte per token, the stop text that ends first decides.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        first = [stop for stop in stops if stop in text and text.find(stop) + len(stop) == min(ends)]
        assert whole == text[: min(ends) - max(map(len, first))]
    else:
        assert whole == text
    other, also = pieces_of(text, stops, iter(sizes))
    assert also == stopped
    assert text.startswith("".join(other))
