"""What the grammar accepts, and what it makes of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from archon_core.errors import LayoutError
from archon_core.layout import Backend, parse_layout


@pytest.mark.parametrize(
    ("text", "world_size"),
    [
        ("fsdp:d8", 8),
        ("fsdp:d4t2c2r2", 32),
        ("sglang:d2t4", 8),
        ("vllm:d2t2p2", 8),
        ("megatron:d2p2t4", 16),
        ("megatron:d2p2t4e4", 16),
        ("megatron:(attn:d4p2t2c2|ffn:d2p2t4e2)", 32),
        ("archon:(attn:d1p4t2c2|ffn:d1p4t1e4)", 16),
        ("archon:d4p2t2", 16),
        ("archon:r2d4t2", 16),
        ("archon:t2", 2),
        ("archon:p2t2d4", 16),
        ("archon:(attn:r2d2t2|ffn:e4)", 8),
        ("local", 0),
    ],
)
def test_world_size(text: str, world_size: int) -> None:
    assert parse_layout(text).world_size == world_size


def test_the_two_sides_of_a_hybrid_layout_have_the_same_ranks() -> None:
    dims = parse_layout("megatron:(attn:d4p2t2c2|ffn:d2p2t4e2)").parallel_dims(moe=True)

    assert dims.dense_grid.size == dims.expert_grid.size == 32
    assert dims.dense_grid.sizes == (2, 1, 4, 2, 2)
    assert dims.expert_grid.sizes == (2, 1, 2, 2, 4)


def test_sizes_are_asked_by_letter_and_are_1_where_nothing_was_written() -> None:
    layout = parse_layout("archon:d4p2")

    assert (layout.backend, layout.kind) == ("archon", "train")
    assert (layout.dims["d"], layout.dims["p"], layout.dims["t"]) == (4, 2, 1)
    assert "p" in layout.dims
    assert "t" not in layout.dims


def test_layouts_are_values() -> None:
    assert parse_layout("archon:d2t2") == parse_layout("archon:d2t2")
    assert len({parse_layout("archon:d2t2"), parse_layout("archon:d2t2"), parse_layout("archon:t2d2")}) == 2


def test_inference_sizes_are_servers_and_devices_per_server() -> None:
    layout = parse_layout("vllm:d4t2p3")

    assert (layout.servers, layout.devices_per_server, layout.world_size) == (4, 6, 24)


def test_local_has_no_servers_and_no_ranks_of_its_own() -> None:
    layout = parse_layout("local")

    assert (layout.servers, layout.devices_per_server, layout.world_size) == (0, 0, 0)
    assert layout.on_trainer_ranks


@pytest.mark.parametrize("text", ["fsdp:d4p1t1", "sglang:d4p1t1", "sglang:d4p1t1e1c1r1", "fsdp:d4e1", "vllm:d1c1"])
def test_a_letter_that_the_backend_lacks_may_have_size_1(text: str) -> None:
    assert str(parse_layout(text)) == text


@pytest.mark.parametrize(
    ("text", "ep", "etp", "edp"),
    [
        ("archon:d4t2e4", 4, 1, 2),
        ("archon:d4t2", 1, 2, 4),
        ("archon:d4t2e1", 1, 2, 4),
        ("archon:d4", 1, 1, 4),
        ("archon:d2c2t2e8", 8, 1, 1),
        ("archon:(attn:d4t2|ffn:e4)", 4, 1, 2),
        ("archon:(attn:d4t2|ffn:e2t4)", 2, 4, 1),
        ("archon:(attn:d3c2|ffn:e2t3)", 2, 3, 1),
    ],
)
def test_the_expert_tensor_size_of_a_flat_layout_is_automatic(text: str, ep: int, etp: int, edp: int) -> None:
    layout = parse_layout(text)
    dims = layout.parallel_dims(moe=True)

    assert (dims.ep, dims.etp, dims.edp) == (ep, etp, edp)
    assert layout.etp == (etp if "ffn" in text else None)
    assert str(layout) == text


@pytest.mark.parametrize(
    "text", ["archon:d4t2", "archon:d4t2e1", "archon:(attn:d4t2|ffn:t2)", "archon:(attn:d4|ffn:d4)"]
)
def test_a_dense_model_has_expert_sizes_of_1(text: str) -> None:
    dims = parse_layout(text).parallel_dims(moe=False)

    assert (dims.ep, dims.etp) == (1, 1)


@pytest.mark.parametrize(
    ("text", "found", "caret", "suggestion"),
    [
        ("archon:d4p2e2", "expert parallelism (e2)", (11, 13), "archon:d4p2"),
        ("archon:(attn:d4t2|ffn:e2t2)", "expert parallelism (e2)", (22, 24), "archon:d4t2"),
        ("archon:(attn:d4t2|ffn:t4)", "expert tensor parallelism (t4)", (22, 24), "archon:d4t2"),
    ],
)
def test_a_dense_model_refuses_expert_axes(read_message, text, found, caret, suggestion) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text).parallel_dims(moe=False, option="actor.backend")

    message = read_message(caught.value)
    assert message.option == "actor.backend"
    assert found in message.found
    assert message.carets == [caret]
    assert message.suggestions == [suggestion]


def test_an_engine_from_a_plugin_brings_its_letters() -> None:
    backends = {
        "tiny": Backend("tiny", "train", "de"),
        "Remote-1": Backend("Remote-1", "inference", "dte"),
        "alone": Backend("alone", "train", ""),
    }

    assert parse_layout("tiny:d2e2", backends=backends).world_size == 2
    assert parse_layout("Remote-1:d2t2e3", backends=backends).world_size == 4
    assert parse_layout("alone", backends=backends).world_size == 1
    with pytest.raises(LayoutError, match=r"tensor parallelism \(t2\), which tiny does not have"):
        parse_layout("tiny:t2", backends=backends)
    with pytest.raises(LayoutError, match="one of Remote-1, alone, tiny"):
        parse_layout("archon:d2", backends=backends)


def test_importing_layouts_imports_no_torch() -> None:
    code = "import sys, archon_core.layout; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
