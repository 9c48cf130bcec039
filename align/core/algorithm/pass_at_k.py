"""Best of n: what choosing the best of several answers is worth, from a sample of n. Pure functions.

Estimates are means over all subsets of k of the n answers, hence unbiased and less noisy than drawing k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the chance that one of k answers is right, where c of n are. 2107.03374 Eq 1.

    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {c} right answers among {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_of_k(rewards: Sequence[float], k: int) -> float:
    """Σ_i r_(i) C(i−1, k−1) / C(n, k), r_(1) ≤ ... ≤ r_(n): the expected best reward of k answers.

    C(i−1, k−1) subsets of k have r_(i) as their greatest. ``pass_at_k`` is the same of rewards 0 and 1.
    Raises ValueError unless 1 ≤ k ≤ n.
    """
    n = len(rewards)
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} among {n} answers")
    ways = math.comb(n, k)
    return math.fsum(r * (math.comb(i, k - 1) / ways) for i, r in enumerate(sorted(rewards)))


def kl_bound(n: int) -> float:
    """KL ≤ log n − (n−1)/n, in nats, of the best of n answers from the model that made them.

    Commonly quoted as the KL itself (1.20 for 8), it is a bound, and close where answers seldom repeat: 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def powers_of_two(n: int) -> Iterator[int]:
    """Yield 1, 2, 4, ... below n, and n."""
    yield from (2**i for i in range(n.bit_length()) if 2**i < n)
    yield n
