"""pass@k: the probability that at least one of k samples solves a problem (arXiv:2107.03374)."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(n_samples: int, n_passed: int, k: int) -> float:
    """The unbiased estimate from ``n_samples`` of which ``n_passed`` passed: 1 - C(n - c, k) / C(n, k).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - comb(n_samples - n_passed, k) / comb(n_samples, k)


def mean_pass_at_k(n_samples: int, passed: Sequence[int]) -> dict[int, float]:
    """k -> mean estimate over problems, for the powers of two below ``n_samples`` and for ``n_samples``.

    Args:
        passed: number of samples that passed, per problem.
    """
    ks = [*(2**i for i in range(n_samples.bit_length()) if 2**i < n_samples), n_samples]
    return {k: sum(pass_at_k(n_samples, n, k) for n in passed) / len(passed) for k in ks}
