"""Options of the engine that must not change the numbers: compilation, recomputation, offloading, and Muon."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from gpu.numerics.comparing import relative_error, worst
from gpu.numerics.engine import bf16
from gpu.numerics.models import MUON, ModelName, build
from gpu.numerics.observing import FP32_BOUNDS, STEP_BOUNDS, batches_of, observe, outcome
from gpu.numerics.oracle import reference
from gpu.records import Check, Context, Outcome, Skipped

EAGER: Mapping[str, Mapping[str, Any]] = {
    "selective": {"ac_mode": "selective"},
    "every-2nd": {"ac_mode": "selective", "selective_ac_option": "2"},
    "full": {"ac_mode": "full"},
}
COMPILED: Mapping[str, Mapping[str, Any]] = {
    "none": {"ac_mode": "none"},
    "selective": {"ac_mode": "selective"},
    "full": {"ac_mode": "full"},
    "memory_budget": {"ac_mode": "memory_budget", "ac_memory_budget": 0.5},
}

MUON_BOUND = 1e-3
"""Relative to a tensor's largest change. Muon multiplies the rounding of small singular values by hundreds."""


def checks(context: Context) -> Iterator[Check]:
    """What users get by default first."""
    yield Check("qwen3-defaults", partial(defaults, context, "qwen3"))
    yield Check("qwen3_moe-defaults", partial(defaults, context, "qwen3_moe"))
    for mode, options in EAGER.items():
        yield Check(f"qwen3-eager-{mode}", partial(training, context, "qwen3", enable_compile=False, **options))
    yield Check("qwen3_moe-eager-selective", partial(training, context, "qwen3_moe", **EAGER["selective"]))
    yield Check("qwen3-offload", partial(training, context, "qwen3", offload_params=True))
    yield Check("qwen3_moe-offload", partial(training, context, "qwen3_moe", offload_params=True))
    yield Check("qwen3-of-transformers-offload", partial(of_transformers, context))
    yield Check("qwen3-muon", partial(muon, context, "qwen3"))
    yield Check("qwen3_moe-muon", partial(muon, context, "qwen3_moe"))
    for mode, options in COMPILED.items():
        yield Check(f"qwen3-compiled-{mode}", partial(training, context, "qwen3", enable_compile=True, **options))
    compiled = partial(training, context, "qwen3_moe", enable_compile=True)
    yield Check("qwen3_moe-compiled-selective", partial(compiled, **COMPILED["selective"]))


def defaults(context: Context, name: ModelName) -> Outcome:
    """bf16, compiled blocks and the fastest attention, as an engine has them on a GPU without any option."""
    # On a CPU, eager is the default, and bf16 takes its compiler minutes.
    return bf16(context, name, enable_compile=context.on_gpu)


def training(context: Context, name: ModelName, **options: Any) -> Outcome:
    """Two steps in fp32 with these options."""
    expected = reference(name, context)
    torch.compiler.reset()
    recompute = options.get("ac_mode", "none") != "none"
    engine = build(name, context, path=expected.checkpoint, recompute=recompute, **options)
    # Outputs are computed without gradients, by graphs that do not depend on what is recomputed.
    outputs = not (recompute and options.get("enable_compile"))
    found = observe(engine, name, batches_of(name, context, torch.float32), outputs=outputs)
    refused = [decision for decision in engine.decisions if decision.option.endswith("enable_compile")]
    engine.close()
    if options.get("enable_compile") and any(decision.effective == "false" for decision in refused):
        raise Skipped("the engine did not compile: " + "; ".join(decision.reason for decision in refused))
    return outcome(found, expected.training, FP32_BOUNDS if outputs else STEP_BOUNDS)


def of_transformers(context: Context) -> Outcome:
    """transformers' own module with parameters in host memory: it has buffers, which stay on the device."""
    expected = reference("qwen3", context)
    engine = build("qwen3", context, path=expected.checkpoint, model="hf", offload_params=True)
    # Its parameters have other names, so that gradients are compared by their norm.
    found = observe(engine, "qwen3", batches_of("qwen3", context, torch.float32), gradients=False)
    engine.offload()
    engine.onload()
    engine.close()
    return outcome(found, expected.training, {name: FP32_BOUNDS[name] for name in ("loss", "gradient norm", "outputs")})


def muon(context: Context, name: ModelName) -> Outcome:
    """The change of every weight in one step with Muon, against the same change in the reference."""
    expected = reference(name, context)
    engine = build(name, context, path=expected.checkpoint, optimizer=MUON)
    before = {n: p.detach().double().cpu() for n, p in engine.parameters.items()}
    step = observe(engine, name, batches_of(name, context, torch.float32)[:1], 1).steps[0]
    engine.close()
    errors = {}
    for n, start in before.items():
        exact = expected.muon.steps[0].weights[n].values - start
        errors[n] = relative_error(step.weights[n].values.double() - start, exact)
    hidden = [n for n, start in before.items() if start.ndim in (2, 3) and n.startswith("layers.")]
    measured = {
        "hidden matrices": worst(errors[n] for n in hidden),
        "others": worst(errors[n] for n in errors if n not in hidden),
    }
    assert all(not math.isnan(error) for error in errors.values()), "a weight is not a number"
    return Outcome(measured, dict.fromkeys(measured, MUON_BOUND), message="changes of weights")
