"""Malformed layouts: the message marks the place, names what it found there, and suggests a fix."""

from __future__ import annotations

import pytest

from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import parse_layout

# text, carets (first column, column after the last), part of 'found', suggestions
TEXT = [
    ("", [(0, 1)], "an empty text", ["archon:d1"]),
    ("   ", [(0, 3)], "white space", ["archon:d1"]),
    (" archon:d4", [(0, 1)], "white space", ["archon:d4"]),
    ("archon:d4  t2", [(9, 11)], "white space", ["archon:d4t2"]),
    ("archon:d4\n", [(9, 11)], "white space", ["archon:d4"]),
]

BACKENDS = [
    ("d4t2", [(0, 1)], "no backend", ["archon:d4t2"]),
    (":d4", [(0, 1)], "no backend", ["archon:d4"]),
    ("8", [(0, 1)], "no backend", ["archon:d1"]),
    ("d4:t2", [(0, 1)], "no backend", ["archon:d4t2"]),
    ("(attn:d4|ffn:e4)", [(0, 1)], "no backend", ["archon:(attn:d4|ffn:e4)"]),
    ("archn:d4t2", [(0, 5)], "unknown backend 'archn'; did you mean 'archon'?", ["archon:d4t2"]),
    ("Archon:d4", [(0, 6)], "unknown backend 'Archon'; did you mean 'archon'?", ["archon:d4"]),
    ("megatrn:(attn:d4|ffn:e4)", [(0, 7)], "did you mean 'megatron'?", ["megatron:(attn:d4|ffn:e4)"]),
    ("sglang.d4t2", [(6, 7)], "'.' after the backend 'sglang'", ["sglang:d4t2"]),
    ("archon(attn:d4|ffn:e4)", [(6, 7)], "'(' after the backend 'archon'", ["archon:(attn:d4|ffn:e4)"]),
    ("archond4", [(0, 8)], "unknown backend 'archond4'; did you mean 'archon'?", ["archon:d4"]),
    ("local:d1", [(5, 8)], "sizes for local", ["local"]),
    ("local:", [(5, 6)], "sizes for local", ["local"]),
]

SIZES = [
    ("archon", [(6, 7)], "no sizes after 'archon'", ["archon:d1"]),
    ("sglang:", [(7, 8)], "no sizes after 'sglang'", ["sglang:d1"]),
    ("archon:d4d2", [(9, 11)], "'d' a second time", ["archon:d4", "archon:d2"]),
    ("archon:d4t2d4", [(11, 13)], "'d' a second time", ["archon:d4t2", "archon:t2d4"]),
    ("archon:d4x2", [(9, 10)], "the unknown letter 'x'", ["archon:d4"]),
    ("archon:D4", [(7, 8)], "the upper-case letter 'D'", ["archon:d4"]),
    ("archon:d4T2", [(9, 10)], "the upper-case letter 'T'", ["archon:d4t2"]),
    ("archon:d0", [(8, 9)], "the size 0", ["archon:d1"]),
    ("archon:d4t00", [(10, 12)], "the size 00", ["archon:d4"]),
    ("archon:d04", [(8, 10)], "leading zeros in 04", ["archon:d4"]),
    ("archon:d1000000", [(8, 15)], "a size of 7 digits", ["archon:d1"]),
    ("archon:dt2", [(8, 9)], "no size after 'd'", ["archon:t2"]),
    ("archon:d4t", [(10, 11)], "no size after 't'", ["archon:d4"]),
    ("archon:d=4", [(8, 9)], "no size after 'd'", ["archon:d4"]),
    ("archon:d\u00b2", [(8, 9)], "no size after 'd'", ["archon:d1"]),
    ("archon:8", [(7, 8)], "the size 8 without a letter", ["archon:d8"]),
    ("archon:16t2", [(7, 9)], "the size 16 without a letter", ["archon:d16t2"]),
    ("archon:d4,t2", [(9, 10)], "',' where a letter is expected", ["archon:d4t2"]),
    ("archon:d-4", [(8, 9)], "no size after 'd'", ["archon:d4"]),
    ("archon::d4", [(7, 8)], "':' where a letter is expected", ["archon:d4"]),
]

BRACKETS = [
    ("archon:(attn:d4|ffn:e4", [(22, 23)], "the end where ')'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:attn:d4|ffn:e4)", [(7, 8)], "'a' where '('", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:d4|t2", [(7, 8)], "'d' where '('", ["archon:(attn:d4|ffn:t2)"]),
    ("archon:(attn:d4)", [(15, 16)], "')' where '|'", ["archon:d4"]),
    ("archon:(attn:d4", [(15, 16)], "the end where '|'", ["archon:d4"]),
    ("archon:(ffn:d2e4)", [(8, 11)], "'ffn' where 'attn'", ["archon:(attn:d8|ffn:d2e4)"]),
    ("archon:(ffn:e4|attn:d4)", [(8, 11)], "'ffn' where 'attn'", ["archon:(attn:d4|ffn:e4)"]),
    (
        "archon:(atn:d4|ffn:e4)",
        [(8, 11)],
        "'atn' where 'attn' is expected; did you mean 'attn'?",
        ["archon:(attn:d4|ffn:e4)"],
    ),
    ("archon:(attn:d4|mlp:e4)", [(16, 19)], "'mlp' where 'ffn'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn2:d4|ffn:e4)", [(8, 13)], "'attn2' where 'attn' is expected", None),
    ("archon:(", [(8, 9)], "the end where 'attn'", ["archon:d1"]),
    ("archon:(attn:d4|attn:d4)", [(16, 20)], "'attn' where 'ffn'", None),
    ("archon:(d4|e4)", [(8, 10)], "'d4' where 'attn'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn=d4|ffn=e4)", [(12, 13)], "'=' where ':'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:|ffn:e4)", [(13, 14)], "no sizes", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:d4|ffn:)", [(20, 21)], "no sizes", ["archon:d4"]),
    ("archon:(attn:d4||ffn:e4)", [(16, 17)], "'|' where 'ffn'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:d4|ffn:e4|ffn:e4)", [(22, 23)], "'|' where ')'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:d4|ffn:e4)t2", [(23, 25)], "'t2' after the closing bracket", None),
    ("archon:((attn:d4|ffn:e4))", [(8, 9)], "'(' where 'attn'", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:d4d2|ffn:e4)", [(15, 17)], "'d' a second time", ["archon:(attn:d4|ffn:e4)"]),
    ("archon:(attn:d4|ffn:e0)", [(21, 22)], "the size 0", ["archon:d4"]),
]

LETTERS = [
    ("fsdp:d4p2", [(7, 9)], "pipeline parallelism (p2), which fsdp", ["fsdp:d8", "archon:d4p2", "megatron:d4p2"]),
    ("fsdp:d4e2", [(7, 9)], "expert parallelism (e2), which fsdp", ["fsdp:d4", "archon:d4e2", "megatron:d4e2"]),
    ("sglang:d2p2", [(9, 11)], "pipeline parallelism (p2), which sglang", ["sglang:d2t2", "vllm:d2p2"]),
    ("sglang:d2r2", [(9, 11)], "HSDP replication (r2), which sglang", ["sglang:d2t2"]),
    ("vllm:c2", [(5, 7)], "context parallelism (c2), which vllm", None),
    ("fsdp:(attn:d4|ffn:d4)", [(5, 21)], "a hybrid layout for fsdp", None),
    ("fsdp:(attn:d4|ffn:e4)", [(18, 20)], "expert parallelism (e4), which fsdp", None),
    ("sglang:(attn:d4|ffn:d4)", [(7, 23)], "a hybrid layout for sglang", ["sglang:d4"]),
]

PARTS = [
    ("archon:(attn:d4e2|ffn:d4)", [(15, 17)], "expert parallelism (e2) in the attn part", None),
    ("archon:(attn:d4e1|ffn:d4)", [(15, 17)], "expert parallelism (e1) in the attn part", None),
    ("archon:(attn:d4|ffn:e2c2)", [(22, 24)], "context parallelism (c2) in the ffn part", None),
    ("archon:(attn:d4|ffn:r2e2)", [(20, 22)], "HSDP replication (r2) in the ffn part", None),
    (
        "archon:(attn:d1p4t2c2|ffn:d1p2t1e4)",
        [(15, 17), (28, 30)],
        "4 pipeline stages for attention and 2 for the experts",
        ["archon:(attn:d1p4t2c2|ffn:d1p4t1e4)", "archon:(attn:d1p2t2c2|ffn:d1p2t1e4)"],
    ),
    (
        "archon:(attn:d4|ffn:p2e4)",
        [(13, 15), (20, 22)],
        "1 pipeline stage for attention and 2 for the experts",
        ["archon:(attn:d4|ffn:p1e4)", "archon:(attn:d4p2|ffn:p2e4)"],
    ),
]

EXPERTS = [
    ("archon:d1p2e2", [(11, 13)], "multiple of 2 ranks in each pipeline stage, on 1", ["archon:d2p2e2", "archon:d1p2"]),
    ("archon:d2e4", [(9, 11)], "multiple of 4 ranks in each pipeline stage, on 2", ["archon:d4e4", "archon:d2e2"]),
    ("archon:e2", [(7, 9)], "multiple of 2 ranks in each pipeline stage, on 1", ["archon:d2e2", "archon:d1"]),
    ("archon:r4e4", [(9, 11)], "multiple of 4 ranks in each pipeline stage, on 1", ["archon:d4r4e4", "archon:r4"]),
    ("megatron:d3t2e4", [(13, 15)], "multiple of 4 ranks", ["megatron:d4t2e4", "megatron:d3t2e3"]),
    (
        "megatron:(attn:d4p2t2c2|ffn:d2p2t4e4)",
        [(15, 23), (28, 36)],
        "32 ranks for the experts (d x e x t = 2 x 4 x 4) against 16 for attention (d x c x t = 4 x 2 x 2)",
        ["megatron:(attn:d4p2t2c2|ffn:d1p2t4e4)", "megatron:(attn:d8p2t2c2|ffn:d2p2t4e4)"],
    ),
    (
        "archon:(attn:d3|ffn:e4)",
        [(13, 15), (20, 22)],
        "experts that need a multiple of 4 ranks (e x t = 4 x 1) against 3",
        ["archon:(attn:d4|ffn:e4)", "archon:(attn:d3|ffn:e3)"],
    ),
    (
        "archon:(attn:d2t3|ffn:d1t4e2)",
        [(13, 17), (22, 28)],
        "8 ranks for the experts (d x e x t = 1 x 2 x 4) against 6 for attention (d x c x t = 2 x 1 x 3)",
        ["archon:(attn:d8t3|ffn:d3t4e2)", "archon:(attn:d2t3|ffn:d1t3e2)"],
    ),
]


@pytest.mark.parametrize(
    ("text", "carets", "found", "suggestions"), TEXT + BACKENDS + SIZES + BRACKETS + LETTERS + PARTS + EXPERTS
)
def test_a_malformed_layout_is_shown_with_its_place_and_layouts_that_work(
    read_message, text: str, carets: list[tuple[int, int]], found: str, suggestions: list[str] | None
) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text, option="actor.backend")

    message = read_message(caught.value)
    assert message.option == "actor.backend"
    assert found in message.found
    assert message.carets == carets
    for suggestion in message.suggestions:
        parse_layout(suggestion)
    assert message.suggestions == suggestions or suggestions is None
    assert message.suggestions


def test_an_unknown_backend_close_to_none_names_the_backends_and_how_to_get_more(read_message) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout("zyx:d4")

    message = read_message(caught.value)
    assert message.found == "the unknown backend 'zyx'"
    assert "archon, fsdp, local, megatron, sglang, vllm" in message.allowed
    assert "install the package that brings 'zyx'" in message.fix


@pytest.mark.parametrize("value", [None, 8, 1.5, True, ["archon:d1"], b"archon:d1"])
def test_a_value_that_is_no_text_is_refused(read_message, value: object) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(value)

    message = read_message(caught.value)
    assert message.found == f"a value of type {type(value).__name__}"
    assert message.shown == repr(value)
    assert message.carets == [(0, 1)]


@pytest.mark.parametrize(
    ("text", "shown", "carets"),
    [
        ("archon:\td4", "archon:\\td4", [(7, 9)]),
        ("\u4e2d:d4", "\\u4e2d:d4", [(0, 6)]),
        ("archon:d4\u4e2d", "archon:d4\\u4e2d", [(9, 15)]),
        ("\x1b[31m", "\\x1b[31m", [(0, 8)]),
    ],
)
def test_characters_that_would_shift_the_carets_are_shown_as_escapes(read_message, text, shown, carets) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text)

    message = read_message(caught.value)
    assert message.shown == shown
    assert message.carets == carets


def test_a_layout_error_is_a_value_error_and_no_configuration_error() -> None:
    with pytest.raises(ValueError, match="layout 'archon:d0'") as caught:
        parse_layout("archon:d0")
    assert not isinstance(caught.value, ConfigError)


def test_the_message_as_a_whole() -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout("archon:d1p2e2", option="actor.backend")

    assert str(caught.value) == (
        "actor.backend 'archon:d1p2e2': found e2, which needs a multiple of 2 ranks in each pipeline stage, "
        "on 1 rank (d x c x t = 1 x 1 x 1)\n"
        "  archon:d1p2e2\n"
        "             ^^\n"
        "allowed: an e that divides d x c x t\n"
        "fix: use 'archon:d2p2e2' (4 ranks) or 'archon:d1p2' (2 ranks)"
    )
