"""The benchmarks that `hatch run bench` runs, in order, with their time limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        name: its module in this folder.
        limit: most seconds that it may take.
        arguments: of a whole run.
        quick: further arguments with ``--quick``: fewer repetitions or cases.
    """

    name: str
    limit: float
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


BENCHES = (
    Bench("startup", 240, quick=("--rounds", "3", "--train-rounds", "1")),
    Bench("head", 240, quick=("--turns", "1")),
    Bench("train_step", 540, quick=("--turns", "2")),
    Bench("tree", 300, quick=("--turns", "3")),
    Bench("generate", 240, quick=("--repetitions", "2")),
    Bench("grpo", 480, quick=("--shape", "short", "--turns", "5")),
    Bench("moe", 90, quick=("--rounds", "3")),
    Bench("distributed", 270, ("--rounds", "8"), quick=("--rounds", "3")),
    Bench("pipeline", 120, ("--rounds", "8"), quick=("--rounds", "4")),
    Bench("plan", 330, ("--measure",), quick=("--rounds", "3")),
    Bench("served", 90, quick=("--repetitions", "2")),
    Bench("publish", 90, ("--rounds", "13"), quick=("--rounds", "3")),
    Bench("checkpoint", 120, ("--rounds", "7"), quick=("--rounds", "3")),
    Bench("verify", 240, quick=("--world", "2")),
    Bench("asynchronous", 330, ("--steps", "12"), quick=("--steps", "6", "--turns", "1")),
)
"""Together about 35 minutes on two idle cores; a limit is about twice the usual time."""


def chosen(names: Sequence[str]) -> list[Bench]:
    """The benchmarks of these names, in their usual order; all without any.

    Raises:
        ValueError: there is no such benchmark.
    """
    known = [bench.name for bench in BENCHES]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"found --only {', '.join(unknown)}; allowed are {', '.join(known)}")
    return [bench for bench in BENCHES if not names or bench.name in names]
