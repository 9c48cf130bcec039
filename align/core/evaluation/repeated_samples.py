"""Scores of several samples of one prompt: pass^k and maj@k, one number a prompt, to be averaged over prompts.

The mean over prompts of each, as of pass@k (core/algorithm/pass_at_k.py), is an unbiased estimate, and a paired
difference of such means has an interval like any.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def pass_hat_k(n: int, c: int, k: int) -> float:
    """C(c, k) / C(n, k): the chance that all of k samples are right, where c of n are (tau-bench 2406.12045 Eq 1).

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass^{k} of {c} right samples among {n}")
    return math.comb(c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], target: Hashable, k: int) -> float:
    """Return how often the answer that most of k samples gave equals the target, in [0, 1] (Wang et al. 2203.11171).

    answers [n] in the order in which they were sampled; None is a sample without a readable answer and has no vote.
    Each whole block of k samples votes once, the rest is left out. Answers with equally many votes share the block
    equally: the expectation of a random choice among them. A block without votes counts 0.
    Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} of {len(answers)} samples")
    blocks = len(answers) // k
    return math.fsum(_majority(answers[block * k : block * k + k], target) for block in range(blocks)) / blocks


def _majority(answers: Sequence[Hashable | None], target: Hashable) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == most]
    return float(target in leaders) / len(leaders) if leaders else 0.0
