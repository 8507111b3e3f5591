"""Peak memory and time of the fused log-probability head against the plain one, forward and backward.

Memory is what a process needs beyond the weight, the hidden states and their gradients. Each variant's is measured in a
separate process, since the peak resident size of a process never falls; once, since it does not vary. Times are medians
of turns in one process, on a quarter of the tokens. Exits 1 when the bar is missed, or results differ.

    hatch run bench-head [--tokens 4096] [--hidden 1024] [--vocab 151936] [--dtype float32] [--device cpu] [--turns 5]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from records import Figure, Measurement
from report import Report, add_json_option

if TYPE_CHECKING:
    from torch import Tensor

BAR = 0.15
SAME = 1e-5
"""Relative difference of loss and gradient in fp32."""
VARIANTS = ("plain", "fused")


@dataclass(frozen=True)
class Inputs:
    """Hidden states [tokens, hidden], the head's weight [vocabulary, hidden] and the target of every token."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    @classmethod
    def make(cls, options: argparse.Namespace, tokens: int) -> Inputs:
        """Random inputs, the same in every run."""
        import torch

        torch.manual_seed(0)
        kind, device, hidden = getattr(torch, options.dtype), options.device, options.hidden
        return cls(
            torch.randn(tokens, hidden, dtype=kind, device=device).requires_grad_(),
            torch.randn(options.vocab, hidden, dtype=kind, device=device).mul_(hidden**-0.5).requires_grad_(),
            torch.randint(0, options.vocab, (tokens,), device=device),
        )

    def clear(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None


def logprobs_of(variant: str) -> Callable[[Inputs], Tensor]:
    """The log-probabilities of the targets, with one of ``VARIANTS``."""
    import torch

    from archon_engine.nn.head import linear_logprobs

    def plain(inputs: Inputs) -> Tensor:
        kind = torch.promote_types(inputs.hidden.dtype, torch.float32)
        logits_TV = (inputs.hidden @ inputs.weight.T).to(kind)
        return torch.log_softmax(logits_TV, -1).gather(1, inputs.targets[:, None])[:, 0]

    def fused(inputs: Inputs) -> Tensor:
        return linear_logprobs(inputs.hidden, inputs.weight, inputs.targets, 1.0)

    return {"plain": plain, "fused": fused}[variant]


def step(variant: str, inputs: Inputs) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and the loss."""
    import torch

    start = time.perf_counter()
    loss = logprobs_of(variant)(inputs).sum()
    loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss.item()


def memory_here(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """In a separate process: peak bytes beyond weight, input and their gradients, of one forward and backward."""
    import torch

    def peak() -> int:
        if options.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    inputs = Inputs.make(options, options.tokens)
    (inputs.hidden[:1] @ inputs.weight[:16].T).sum().item()  # loads the matrix library
    before = peak()
    _, loss = step(variant, inputs)
    gradients = inputs.weight.nbytes + inputs.hidden.nbytes
    return {
        "bytes": peak() - before - gradients,
        "loss": loss,
        "gradient": inputs.weight.grad.double().norm().item(),
    }


def compare_memory(options: argparse.Namespace, arguments: list[str], report: Report) -> None:
    """Report the ratio of both peaks, and whether results are the same."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, *arguments]
        found[variant] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plain, fused = found["plain"], found["fused"]
    differences = {name: abs(fused[name] - plain[name]) / abs(plain[name]) for name in ("loss", "gradient")}
    report.add(
        Measurement(
            f"memory, {options.tokens} tokens",
            fused["bytes"] / plain["bytes"],
            "lower",
            Figure(fused["bytes"] / 2**20, "MiB"),
            Figure(plain["bytes"] / 2**20, "MiB"),
            "projection, then log-softmax",
            1,
            bar=BAR,
            details={f"relative difference of the {name}": f"{value:.0e}" for name, value in differences.items()},
        )
    )
    for name, difference in differences.items():
        if difference > SAME and options.dtype == "float32":
            report.fail(f"the {name} differs by {difference:.1e}, allowed {SAME:g}")


def compare_times(options: argparse.Namespace, report: Report) -> None:
    """Report the ratio of both times."""
    inputs = Inputs.make(options, options.tokens // 4)
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(options.turns + 1):
        for variant in VARIANTS:
            inputs.clear()
            seconds, _ = step(variant, inputs)
            if turn:  # the first touches memory for the first time
                times[variant].append(seconds)
    plain, fused = (statistics.median(times[variant]) for variant in VARIANTS)
    report.add(
        Measurement(
            f"time, {options.tokens // 4} tokens",
            fused / plain,
            "lower",
            Figure(fused, "s"),
            Figure(plain, "s"),
            "projection, then log-softmax",
            options.turns,
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    add_json_option(parser)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(memory_here(options.variant, options)))
        return 0
    report = Report("head", options.json)
    compare_memory(options, sys.argv[1:], report)
    compare_times(options, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
