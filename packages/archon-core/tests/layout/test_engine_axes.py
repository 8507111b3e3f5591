"""An engine refuses the axes that it cannot run, by name."""

from __future__ import annotations

import pytest

from archon_core.errors import LayoutError
from archon_core.layout import parse_layout, refuse_axes

HINTS = {"p": "pip install archon-pipeline", "e": "pip install archon-moe"}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("archon:d1", ""),
        ("archon:d1t1p1c1e1r1", ""),
        ("archon:d4t2", "dt"),
        ("archon:d4t2p2c2r2e4", "dtpcer"),
        ("archon:(attn:d4|ffn:d2e2)", "de"),
        ("archon:(attn:d4|ffn:d4)", "d"),
    ],
)
def test_axes_that_the_engine_runs_are_let_through(text: str, axes: str) -> None:
    refuse_axes(parse_layout(text), axes, hints=HINTS)


@pytest.mark.parametrize(
    ("text", "axes", "names", "carets", "allowed", "fix"),
    [
        (
            "archon:d4c2",
            "dt",
            "context parallelism (c2)",
            [(9, 11)],
            "sizes above 1 of d, t only",
            "use 'archon:d8' (8 ranks)",
        ),
        (
            "archon:d4p2",
            "d",
            "pipeline parallelism (p2)",
            [(9, 11)],
            "sizes above 1 of d only",
            "use 'archon:d8' (8 ranks); p needs `pip install archon-pipeline`",
        ),
        (
            "archon:d4e2",
            "dt",
            "expert parallelism (e2)",
            [(9, 11)],
            "sizes above 1 of d, t only",
            "use 'archon:d4' (4 ranks); e needs `pip install archon-moe`",
        ),
        (
            "archon:t2",
            "",
            "tensor parallelism (t2)",
            [(7, 9)],
            "no size above 1",
            "use 'archon:d1' (1 rank)",
        ),
        (
            "archon:d4t1p2c2",
            "t",
            "data parallelism (d4), pipeline parallelism (p2) and context parallelism (c2)",
            [(7, 9), (11, 15)],
            "sizes above 1 of t only",
            "use 'archon:t1' (1 rank); p needs `pip install archon-pipeline`",
        ),
        (
            "archon:(attn:d4p2|ffn:d1e2t2)",
            "dp",
            "expert parallelism (e2) and expert tensor parallelism (t2)",
            [(24, 28)],
            "sizes above 1 of d, p only",
            "use 'archon:d4p2' (8 ranks); e needs `pip install archon-moe`",
        ),
        (
            "archon:(attn:d4p2|ffn:d1p2e2t2)",
            "de",
            "pipeline parallelism (p2)",
            [(15, 17)],
            "sizes above 1 of d, e only",
            "use 'archon:d8' (8 ranks); p needs `pip install archon-pipeline`",
        ),
        (
            "archon:(attn:d4p2|ffn:d1e2t2)",
            "de",
            "pipeline parallelism (p2)",
            [(15, 17)],
            "sizes above 1 of d, e only",
            "use 'archon:(attn:d8|ffn:e2t2)' (8 ranks); p needs `pip install archon-pipeline`",
        ),
    ],
)
def test_other_axes_are_refused_by_name(read_message, text, axes, names, carets, allowed, fix) -> None:
    with pytest.raises(LayoutError) as caught:
        refuse_axes(parse_layout(text), axes, hints=HINTS, option="actor.backend")

    message = read_message(caught.value)
    assert message.option == "actor.backend"
    assert message.found == f"{names}, which the archon engine cannot run as it is installed"
    assert message.carets == carets
    assert message.allowed == allowed
    assert message.fix == fix
    for suggestion in message.suggestions:
        refuse_axes(parse_layout(suggestion), axes)


def test_without_hints_no_package_is_named() -> None:
    with pytest.raises(LayoutError, match=r"fix: use 'archon:d2' \(2 ranks\)$"):
        refuse_axes(parse_layout("archon:p2"), "d")
