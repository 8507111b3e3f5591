"""The deprecated ``allocation_mode``: ignored, with what to write instead."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.layout import parse_layout
from archon_train.areal.allocation_mode import allocation_mode_decision


@pytest.mark.parametrize(
    ("allocation_mode", "overrides"),
    [
        ("sglang:d4t2+archon:d4p2t2", ["rollout.backend=sglang:d4t2", "actor.backend=archon:d4p2t2"]),
        ("sglang:d4t4 + fsdp:d8", ["rollout.backend=sglang:d4t4", "actor.backend=fsdp:d8"]),
        ("vllm:d1p1t4+d4p1t1", ["rollout.backend=vllm:d1p1t4", "actor.backend=archon:d4p1t1"]),
        ("sglang.d4p1t1+d4p1t1", ["rollout.backend=sglang:d4p1t1", "actor.backend=archon:d4p1t1"]),
        ("sglang.d4p1t1+fsdp:d4", ["rollout.backend=sglang:d4p1t1", "actor.backend=fsdp:d4"]),
        ("sglang.d16p1m1+d32p2m1", ["rollout.backend=sglang:d16p1t1", "actor.backend=archon:d32p2t1"]),
        ("sglang:d4+eval", ["rollout.backend=sglang:d4"]),
        ("sglang:d4p1t1", ["rollout.backend=sglang:d4p1t1"]),
        ("d8", ["actor.backend=archon:d8"]),
        ("megatron:(attn:d4|ffn:e4)", ["actor.backend=megatron:(attn:d4|ffn:e4)"]),
        (
            "sglang:d4t4+archon:(attn:d1p4t2c2|ffn:d1p4t1e4)",
            ["rollout.backend=sglang:d4t4", "actor.backend=archon:(attn:d1p4t2c2|ffn:d1p4t1e4)"],
        ),
        (
            "sglang[rollout]:d2+fsdp[actor]:d4+fsdp[critic]:d2",
            ["rollout.backend=sglang:d2", "actor.backend=fsdp:d4", "critic.backend=fsdp:d2"],
        ),
    ],
)
def test_the_decision_names_the_backend_of_each_engine(allocation_mode: str, overrides: list[str]) -> None:
    decision = allocation_mode_decision(allocation_mode)

    assert (decision.option, decision.requested, decision.effective) == ("allocation_mode", allocation_mode, "ignored")
    deprecated, written = decision.reason.split("; write ")
    assert "deprecated" in deprecated
    assert shlex.split(written) == overrides
    for override in overrides:
        parse_layout(override.partition("=")[2])


def test_engines_on_the_same_ranks_have_no_equivalent_and_the_decision_says_so() -> None:
    reason = allocation_mode_decision("sglang:d4|fsdp:d4").reason

    assert "write rollout.backend=sglang:d4 actor.backend=fsdp:d4; '|' needs no replacement" in reason


@pytest.mark.parametrize(
    ("allocation_mode", "cause"),
    [
        ("", "found ''"),
        ("auto", "found 'auto'"),
        ("sglang:d4+", "found ''"),
        ("sglang:d4+archon:d0", "found the size 0"),
        ("sglang:d2p2+archon:d4", "found pipeline parallelism (p2), which sglang does not have"),
        ("fsdp:d4+fsdp:d4", "found a second engine for 'actor' in 'fsdp:d4'"),
        ("fsdp[judge]:d4", "found the unknown engine 'judge'"),
        ("d4e3", "found e3"),
    ],
)
def test_a_string_that_cannot_be_read_is_ignored_with_the_cause(allocation_mode: str, cause: str) -> None:
    decision = allocation_mode_decision(allocation_mode)

    assert decision.effective == "ignored"
    assert "set rollout.backend and actor.backend" in decision.reason
    assert cause in decision.reason
    assert "\n" not in decision.reason


@given(st.text("sglanfdptm.:+|()[]0123456789 "))
def test_no_string_stops_a_run(allocation_mode: str) -> None:
    assert allocation_mode_decision(allocation_mode).effective == "ignored"
