"""Peak memory and time of the fused log-probability head against the plain one, forward and backward.

Memory is what a process needs beyond the weight, the hidden states and their gradients. Each variant runs in a separate
process, since the peak resident size of a process never falls. Exits 1 when the bar is missed.

    python tooling/bench/head.py [--tokens 4096] [--hidden 1024] [--vocab 151936] [--dtype float32] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

BAR = 0.15


def measure(variant: str, tokens: int, hidden: int, vocab: int, dtype: str, device: str) -> dict[str, float]:
    """Peak bytes beyond weight, input and their gradients, and seconds, of one forward and backward."""
    import torch

    from archon_engine.nn.head import linear_logprobs

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden_TH = torch.randn(tokens, hidden, dtype=kind, device=device).requires_grad_()
    weight_VH = torch.randn(vocab, hidden, dtype=kind, device=device).mul_(hidden**-0.5).requires_grad_()
    targets_T = torch.randint(0, vocab, (tokens,), device=device)

    def plain() -> torch.Tensor:
        logits_TV = (hidden_TH @ weight_VH.T).to(torch.promote_types(kind, torch.float32))
        return torch.log_softmax(logits_TV, -1).gather(1, targets_T[:, None])[:, 0]

    def fused() -> torch.Tensor:
        return linear_logprobs(hidden_TH, weight_VH, targets_T, 1.0)

    def peak() -> int:
        if device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    (hidden_TH[:1] @ weight_VH[:16].T).sum().item()  # loads the matrix library
    before = peak()
    start = time.perf_counter()
    loss = {"plain": plain, "fused": fused}[variant]().sum()
    loss.backward()
    after = peak()
    seconds = time.perf_counter() - start
    gradients = (weight_VH.numel() + hidden_TH.numel()) * kind.itemsize
    return {
        "bytes": after - before - gradients,
        "seconds": seconds,
        "loss": loss.item(),
        "gradient": weight_VH.grad.double().norm().item(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", choices=["plain", "fused"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.tokens, options.hidden, options.vocab, options.dtype, options.device)
    if options.variant:
        print(json.dumps(measure(options.variant, *sizes)))
        return 0
    results = {}
    for variant in ("plain", "fused"):
        command = [sys.executable, __file__, "--variant", variant, *sys.argv[1:]]
        results[variant] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{variant}: {results[variant]['bytes'] / 2**20:,.0f} MiB, {results[variant]['seconds']:.2f} s")
    plain, fused = results["plain"], results["fused"]
    ratio = fused["bytes"] / plain["bytes"]
    print(f"memory: {ratio:.3f} of the plain head's (bar: below {BAR})")
    print(f"time: {fused['seconds'] / plain['seconds']:.2f} of the plain head's")
    for quantity in ("loss", "gradient"):
        error = abs(fused[quantity] - plain[quantity]) / abs(plain[quantity])
        print(f"relative difference of the {quantity}: {error:.1e}")
    return 0 if ratio < BAR else 1


if __name__ == "__main__":
    sys.exit(main())
