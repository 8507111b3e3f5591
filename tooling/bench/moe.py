"""A mixture-of-experts block, forward and backward, against transformers' with the same weights, on one process.

The rivals are the implementations that transformers has for Qwen3-MoE's experts (eager, batched_mm, grouped_mm), each
inside its whole block; the fastest counts. Archon and the fastest take turns; medians count. Details are the time in
routing, dispatch (ordering, gathering and adding rows) and matrix products, and the floor: the same products alone,
into memory that is already allocated. Exits 1 when a bar is missed.

    python tooling/bench/moe.py [--tokens 2048] [--hidden 512] [--intermediate 384] [--dtype float32] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from records import Figure, Measurement
from report import Report, add_json_option
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_engine.options.archon import ArchonOptions
from archon_moe.block import MoEBlock
from archon_moe.builder import MoEBlocks

BARS = {(128, 8): 1.2, (8, 2): 0.95}
"""(experts, top-k) -> the least ratio of transformers' time to ours."""

BATCHED_TOKENS = 32
"""``batched_mm`` copies an expert's weights for every token: it is timed on so many tokens and scaled."""

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::_grouped_mm", "aten::bmm")
MOVING = ("aten::index_select", "aten::index_add_", "aten::sort", "aten::argsort", "aten::bincount", "aten::index")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 for torch's choice")
    add_json_option(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report("moe", options.json)
    for (n_experts, top_k), bar in BARS.items():
        compare(n_experts, top_k, bar, options, report)
    return report.finish()


def compare(n_experts: int, top_k: int, bar: float, options: argparse.Namespace, report: Report) -> None:
    """Measure one block."""
    dtype, device = getattr(torch, options.dtype), options.device
    torch.manual_seed(0)
    settings = MoESettings(options.hidden, options.intermediate, n_experts, top_k, norm_topk_prob=True)
    ours = MoEBlocks(ArchonOptions()).build(settings, 0).to(device, dtype)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    x = torch.randn(options.tokens, options.hidden, device=device, dtype=dtype)
    grad = torch.randn_like(x)
    packed = PackedSequences.from_lengths((options.tokens,), device)

    print(f"\n{n_experts} experts, top {top_k}: {options.tokens} tokens, {options.dtype}, {device}")
    rivals: dict[str, float] = {}
    theirs = transformers_block(ours, settings)
    for name in ("grouped_mm", "eager", "batched_mm"):
        theirs.experts.config._experts_implementation = name
        n = min(BATCHED_TOKENS, options.tokens) if name == "batched_mm" else options.tokens
        call = lambda x: theirs(x[None])[0]  # noqa: E731
        rivals[name] = step(theirs, call, x[:n], grad[:n], device) * options.tokens / n
        scaled = f" (scaled from {n} tokens)" if n < options.tokens else ""
        print(f"  transformers {name}: {rivals[name]:.3f} s, first round{scaled}")
    near = [name for name, seconds in rivals.items() if seconds < 2 * min(rivals.values())]

    times: dict[str, list[float]] = {name: [] for name in ("archon", *near)}
    for number in range(options.rounds + 2):
        for name in ("archon", *near):
            if name == "archon":
                seconds = step(ours, lambda x: ours(x, packed), x, grad, device)
            else:
                theirs.experts.config._experts_implementation = name
                seconds = step(theirs, lambda x: theirs(x[None])[0], x, grad, device)
            if number >= 2:  # memory is touched for the first time in the first ones
                times[name].append(seconds)
    best = {name: statistics.median(found) for name, found in times.items()}
    rival = min(near, key=best.__getitem__)
    difference = disagreement(ours, theirs, x, packed)
    print(f"  archon ({ours.experts.implementation.name}); outputs differ by {difference:.1e} of the largest")
    report.add(
        Measurement(
            f"{n_experts} experts, top {top_k}",
            best[rival] / best["archon"],
            "higher",
            Figure(1e3 * best["archon"], "ms"),
            Figure(1e3 * best[rival], "ms"),
            f"transformers, {rival}",
            options.rounds,
            bar=bar,
            details=parts(ours, x, grad, packed, device),
        )
    )


def transformers_block(ours: MoEBlock, settings: MoESettings) -> nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=settings.hidden_size,
        moe_intermediate_size=settings.intermediate_size,
        num_experts=settings.n_experts,
        num_experts_per_tok=settings.top_k,
        norm_topk_prob=settings.norm_topk_prob,
    )
    config._experts_implementation = "eager"
    block = Qwen3MoeSparseMoeBlock(config).to(ours.router.weight)
    with torch.no_grad():
        block.gate.weight.copy_(ours.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat([ours.experts.gate_proj, ours.experts.up_proj], 1))
        block.experts.down_proj.copy_(ours.experts.down_proj)
    return block


def step(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, device: str) -> float:
    """Seconds of one forward and backward pass."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    wait(device)
    start = time.perf_counter()
    call(leaf).backward(grad)
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def disagreement(ours: MoEBlock, theirs: nn.Module, x: Tensor, packed: PackedSequences) -> float:
    expected = theirs(x[None])[0]
    return ((ours(x, packed) - expected).abs().max() / expected.abs().max()).item()


def parts(ours: MoEBlock, x: Tensor, grad: Tensor, packed: PackedSequences, device: str) -> dict[str, float]:
    """Print where the time goes; milliseconds."""

    def routed(x: Tensor) -> Tensor:
        return ours.router.route(*ours.router(x)).weights

    weights = torch.ones(x.shape[0], ours.settings.top_k, device=x.device)
    routing = min(step(ours, routed, x, weights, device) for _ in range(3))
    rounds = []
    for _ in range(3):
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        with profile(activities=kinds) as profiled:
            seconds = step(ours, lambda x: ours(x, packed), x, grad, device)
        rounds.append((seconds, seconds_in(MOVING, profiled, device), seconds_in(PRODUCTS, profiled, device)))
    _, moving, products = min(rounds)
    floor, flop = products_alone(ours, x, device)
    print(
        f"  routing {routing * 1e3:.1f} ms, dispatch {moving * 1e3:.1f} ms, products {products * 1e3:.0f} ms; "
        f"floor of the experts' products {floor * 1e3:.0f} ms ({flop / floor / 1e9:.0f} GFLOP/s)"
    )
    seconds = {"routing ms": routing, "dispatch ms": moving, "products ms": products, "products alone ms": floor}
    return {name: round(1e3 * value, 1) for name, value in seconds.items()}


def seconds_in(operations: tuple[str, ...], profiled: profile, device: str) -> float:
    column = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return sum(getattr(event, column) for event in profiled.key_averages() if event.key in operations) / 1e6


@torch.no_grad()
def products_alone(ours: MoEBlock, x: Tensor, device: str) -> tuple[float, float]:
    """Seconds and operations of the nine products of every expert, on as many rows as it has."""
    settings, experts = ours.settings, ours.experts
    counts = torch.bincount(ours.router.route(*ours.router(x)).experts.flatten(), minlength=settings.n_experts).tolist()
    rows, hidden = x.new_ones(max(counts), x.shape[1]), x.new_ones(max(counts), settings.intermediate_size)
    to_rows, to_hidden = torch.empty_like(rows), torch.empty_like(hidden)
    of_up, of_down = torch.empty_like(experts.up_proj[0]), torch.empty_like(experts.down_proj[0])
    seconds = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        for e, n in enumerate(counts):
            for up in (experts.gate_proj[e], experts.up_proj[e]):
                torch.mm(rows[:n], up.t(), out=to_hidden[:n])
                torch.mm(hidden[:n], up, out=to_rows[:n])
                torch.mm(hidden[:n].t(), rows[:n], out=of_up)
            down = experts.down_proj[e]
            torch.mm(hidden[:n], down.t(), out=to_rows[:n])
            torch.mm(rows[:n], down, out=to_hidden[:n])
            torch.mm(rows[:n].t(), hidden[:n], out=of_down)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds), 18.0 * sum(counts) * x.shape[1] * settings.intermediate_size


if __name__ == "__main__":
    sys.exit(main())
