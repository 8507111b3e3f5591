"""LoRA on every layout: the numbers of one process, in float64."""

from __future__ import annotations

import json

import pytest
import torch

from archon_core.cli.main import main
from archon_engine.options.archon import ArchonOptions
from archon_engine.parallel.shards import whole_values
from archon_testing.worlds import run_world
from lora_engines import CLOSE, LIKE_TRANSFORMERS, make_engine, train

TARGETS = {"routed": ["gate", "all-linear"]}
RECOMPUTED = {"gradient_checkpointing": True, "ac_mode": "full"}
ON_TWO = (
    ("t2", "one key head", RECOMPUTED),
    ("t2", "hf", {}),
    ("p2", "qwen3", {"pp_schedule": "ZBVZeroBubble"}),
    ("c2", "qwen3", {}),
    ("d2e2", "qwen3_moe", {}),
    ("(attn:d2|ffn:t2)", "routed", {"target_modules": TARGETS["routed"]}),
)
WIDE = (
    ("c2t2", "qwen3", {}),
    ("d2t2e2", "qwen3_moe", {}),
    ("r2d2", "qwen3", RECOMPUTED),
    ("t4", "one key head", {}),
    ("d2t2", "qwen2", {}),
    ("d2c2", "qwen3", {"gradient_checkpointing": True, "ac_mode": "selective"}),
    ("p2t2", "qwen3", {"pp_schedule": "InterleavedZeroBubble"}),
    ("d2p2", "qwen3", {"pp_schedule": "Interleaved1F1B", **RECOMPUTED}),
    ("p2c2", "tied", {"pp_schedule": "1F1B"}),
    ("(attn:d2t2|ffn:t2e2)", "qwen3_moe", RECOMPUTED),
    ("(attn:t4|ffn:d2t2)", "qwen3_moe", {"gradient_checkpointing": True, "ac_mode": "selective"}),
    ("p2d2e2", "qwen3_moe", {"pp_schedule": "InterleavedZeroBubble"}),
    ("d2t2", "hf", {}),
)


def numbers(layout, model, options):
    """Loss and norm of each step, the gradients of the last, the weights after it, and their merged export."""
    engine = make_engine(layout, model, **options)
    told = train(engine)
    gradients = {name: whole_values(p.grad) for name, p in engine.parameters.items() if p.grad is not None}
    weights = {name: whole_values(p) for name, p in engine.parameters.items()}
    merged = {
        name: values.clone() for bucket in engine.weight_buckets(2**30) for name, values in bucket.tensors.items()
    }
    engine.close()
    return told, gradients, weights, merged


def compare(folder, layout, model, options):
    """What this rank finds wrong, and the names of its gradients."""
    expected = torch.load(folder / f"{model}.pt")
    found = numbers(layout, model, options)
    close = LIKE_TRANSFORMERS if model == "hf" else CLOSE
    problems = []
    for step, (these, those) in enumerate(zip(found[0], expected[0], strict=True)):
        problems += [f"step {step}: {these}, not {those}"] * (these != pytest.approx(those, rel=close))
    for what, these, those in zip(("gradient", "weight", "export"), found[1:], expected[1:], strict=True):
        for name, values in these.items():
            original = those[name if name in those else "embed.weight"]  # the other end of a tie
            error = float((values - original).abs().max() / original.abs().max().clamp_min(1e-30))
            problems += [f"{what} of {name}: {error}"] * (not error <= close)
    return problems, set(found[1])


def compare_all(folder, cases):
    return [compare(folder, *case) for case in cases]


def assert_right(folder, n_ranks, cases):
    for model in {model for _, model, _ in cases}:
        if not (folder / f"{model}.pt").exists():
            options = {"target_modules": TARGETS[model]} if model in TARGETS else {}
            torch.save(numbers("d1", model, options), folder / f"{model}.pt")
    ranks = run_world(compare_all, n_ranks, (folder, cases), time_limit=300)
    for number, case in enumerate(cases):
        assert [problem for rank in ranks for problem in rank[number][0]] == [], case
        expected = set(torch.load(folder / f"{case[1]}.pt")[1])
        assert set().union(*(rank[number][1] for rank in ranks)) == expected, case
        assert all(".lora." in name for name in expected)


def test_every_axis_has_the_numbers_of_one_process(tmp_path):
    assert_right(tmp_path, 2, ON_TWO)


@pytest.mark.wide
def test_products_of_axes_have_the_numbers_of_one_process(tmp_path):
    assert_right(tmp_path, 4, WIDE)


@pytest.mark.wide
def test_verify_trains_adapters_on_request(capsys):
    given = ["--layout", "d2e2", "--variant", "lora", "--dtype", "float64", "--micro-batches", "2", "--json", "-"]
    with pytest.raises(SystemExit) as end:
        main(["verify", "qwen3_moe", *given])
    assert not end.value.code
    report = json.loads(capsys.readouterr().out)
    assert {case["variant"] for layout in report["layouts"] for case in layout["cases"]} == {"lora"}


def test_frozen_weights_are_stored_in_the_compute_dtype_without_changing_a_bit():
    for kept, wide in run_world(train_in_bfloat16, 2):
        assert kept["dtypes"] == {(True, torch.float32), (False, torch.bfloat16)}
        assert wide["dtypes"] == {(True, torch.float32), (False, torch.float32)}
        assert kept["state"] == wide["state"] == {torch.float32}
        assert kept["steps"] == wide["steps"]
        assert kept["frozen"] == "float32; bfloat16 for the model's own weights"
        for name, weight in kept["adapters"].items():
            assert torch.equal(weight, wide["adapters"][name])


def train_in_bfloat16():
    return [after_steps_in_bfloat16({}), after_steps_in_bfloat16({"master_dtype": "float32"})]


def after_steps_in_bfloat16(archon):
    """What a rank holds after two steps of d2."""
    engine = make_engine("d2", dtype="bfloat16", archon=ArchonOptions(enable_compile=False, **archon))
    steps = train(engine, (0, 1))
    parts = [part for part in engine.stage().parts if part.name.startswith("optimizer.") and part.shape]
    assert all(".lora." in part.name for part in engine.stage().parts)
    found = {
        "steps": steps,
        "dtypes": {(p.requires_grad, p.dtype) for p in engine.parameters.values()},
        "adapters": {name: whole_values(p) for name, p in engine.parameters.items() if p.requires_grad},
        "state": {part.values().dtype for part in parts},
        "frozen": next((d.effective for d in engine.decisions if d.option == "actor.archon.master_dtype"), None),
    }
    assert all(p.requires_grad or p.grad is None for p in engine.parameters.values())
    engine.close()
    return found
