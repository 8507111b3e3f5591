"""Properties of the grammar over drawn layouts and over arbitrary text."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archon_core.errors import LayoutError
from archon_core.layout import parse_layout

SIZES = st.integers(1, 6)


@st.composite
def flat_layouts(draw: st.DrawFn) -> str:
    sizes = draw(st.dictionaries(st.sampled_from("dtpcr"), SIZES, min_size=1))
    per_stage = sizes.get("d", 1) * sizes.get("c", 1) * sizes.get("t", 1)
    if draw(st.booleans()):
        sizes["e"] = draw(st.sampled_from(_divisors(per_stage)))
    backend = draw(st.sampled_from(["archon", "megatron"]))
    return f"{backend}:{_write(draw, sizes)}"


@st.composite
def hybrid_layouts(draw: st.DrawFn) -> str:
    attn = draw(st.dictionaries(st.sampled_from("dtpcr"), SIZES, min_size=1))
    ranks = attn.get("d", 1) * attn.get("c", 1) * attn.get("t", 1)
    ffn = {"e": draw(st.sampled_from(_divisors(ranks)))}
    left = ranks // ffn["e"]
    ffn["t"] = draw(st.sampled_from(_divisors(left)))
    if draw(st.booleans()):
        ffn["d"] = left // ffn["t"]
    if draw(st.booleans()):
        ffn["p"] = attn.get("p", 1)
    backend = draw(st.sampled_from(["archon", "megatron"]))
    return f"{backend}:(attn:{_write(draw, attn)}|ffn:{_write(draw, ffn)})"


@st.composite
def inference_layouts(draw: st.DrawFn) -> str:
    backend, letters = draw(st.sampled_from([("sglang", "dt"), ("vllm", "dtp")]))
    sizes = draw(st.dictionaries(st.sampled_from(letters), SIZES, min_size=1))
    return f"{backend}:{_write(draw, sizes)}"


def _write(draw: st.DrawFn, sizes: dict[str, int]) -> str:
    order = draw(st.permutations(sorted(sizes)))
    return "".join(f"{letter}{sizes[letter]}" for letter in order)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


LAYOUTS = st.one_of(flat_layouts(), hybrid_layouts(), inference_layouts(), st.just("local"))


@given(LAYOUTS)
def test_parsing_what_was_printed_gives_the_same_layout(text: str) -> None:
    layout = parse_layout(text)

    assert parse_layout(str(layout)) == layout


@given(LAYOUTS)
def test_a_layout_prints_as_it_was_written(text: str) -> None:
    assert str(parse_layout(text)) == text


@given(st.one_of(flat_layouts(), hybrid_layouts()))
def test_the_world_size_is_the_product_of_the_dense_sizes(text: str) -> None:
    dense = text.partition("|")[0]
    world_size = 1
    for letter, size in re.findall(r"([dtpcre])(\d+)", dense.partition(":")[2]):
        world_size *= 1 if letter == "e" else int(size)

    assert parse_layout(text).world_size == world_size


@given(st.one_of(flat_layouts(), hybrid_layouts()))
def test_a_layout_and_its_parallel_dims_have_as_many_ranks(text: str) -> None:
    layout = parse_layout(text)
    dims = layout.parallel_dims(moe=True)

    assert dims.world_size == layout.world_size
    assert dims.expert_grid.size == dims.dense_grid.size == layout.world_size


@given(hybrid_layouts())
def test_the_expert_data_size_of_a_hybrid_layout_is_the_one_that_was_written(text: str) -> None:
    layout = parse_layout(text)
    assume("d" in layout.ffn)

    assert layout.parallel_dims(moe=True).edp == layout.ffn["d"]


def assert_complete(error: LayoutError, read_message) -> None:
    """Every message has its parts, marks a place in the text, and suggests only what works."""
    message = read_message(error)
    first, last = message.carets[0][0], message.carets[-1][1]
    assert 0 <= first < last <= len(message.shown) + 1
    assert message.suggestions or "install the package" in message.fix or "write it in the form" in message.fix
    for suggestion in message.suggestions:
        parse_layout(suggestion)


MANGLED = st.builds(
    lambda text, at, new: text[: at % (len(text) + 1)] + new + text[(at % (len(text) + 1)) + len(new) - 1 :],
    LAYOUTS,
    st.integers(0, 60),
    st.text("dtpcerxm0123456789:|() \t\u00b2\u00e4-.AD", min_size=1, max_size=3),
)


@settings(max_examples=200)
@given(MANGLED)
def test_a_mangled_layout_is_read_exactly_or_refused_with_found_allowed_and_fix(read_message, text: str) -> None:
    try:
        layout = parse_layout(text)
    except LayoutError as error:
        assert_complete(error, read_message)
    else:
        assert str(layout) == text


@given(st.text())
def test_arbitrary_text_is_refused_with_found_allowed_and_fix(read_message, text: str) -> None:
    assume(text != "local")
    with pytest.raises(LayoutError) as caught:
        parse_layout(text)
    assert_complete(caught.value, read_message)


SIZES_OR_ODDITIES = st.dictionaries(st.sampled_from("dtpcer"), st.integers(1, 9), min_size=1)


@settings(max_examples=200)
@given(st.sampled_from(["archon", "megatron", "fsdp", "sglang", "vllm"]), SIZES_OR_ODDITIES, SIZES_OR_ODDITIES)
def test_sizes_that_do_not_go_together_are_refused_with_layouts_that_work(
    read_message, backend: str, attn: dict[str, int], ffn: dict[str, int]
) -> None:
    def write(sizes: dict[str, int]) -> str:
        return "".join(f"{letter}{size}" for letter, size in sizes.items())

    for text in (f"{backend}:{write(attn)}", f"{backend}:(attn:{write(attn)}|ffn:{write(ffn)})"):
        try:
            parse_layout(text)
        except LayoutError as error:
            assert_complete(error, read_message)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
def test_too_many_experts_are_answered_with_the_fewest_more_ranks_and_the_most_experts_that_fit(
    read_message, d: int, c: int, t: int, e: int
) -> None:
    assume((d * c * t) % e)
    with pytest.raises(LayoutError) as caught:
        parse_layout(f"archon:d{d}c{c}t{t}e{e}")

    more = next(size for size in range(d, 10_000) if (size * c * t) % e == 0)
    fewer = max(size for size in range(1, e) if (d * c * t) % size == 0)
    experts = f"e{fewer}" if fewer > 1 else ""
    assert read_message(caught.value).suggestions == [f"archon:d{more}c{c}t{t}e{e}", f"archon:d{d}c{c}t{t}{experts}"]
