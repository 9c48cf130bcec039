"""Metrics of several samples of one item: their mean, one right, the most frequent answer right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from align.evals import Row, maj_at_k, mean


def sample_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return ``avg@k``, ``pass@k`` and ``maj@k`` of k samples an item; nothing for one sample.

    pass@k: share of items with a right sample among all k. maj@k: share whose most frequent answer is right; of m
    answers that are equally frequent each counts 1/m, so that no order of the samples decides.
    """
    items = defaultdict(list)
    for row in rows:
        items[row.item_id].append(row)
    k = min(map(len, items.values()))
    if k == 1:
        return {}
    return {
        f"avg@{k}": mean(row.score for row in rows),
        f"pass@{k}": mean(float(any(row.score == 1 for row in samples)) for samples in items.values()),
        f"maj@{k}": mean(map(_majority, items.values())),
    }


def _majority(samples: Sequence[Row]) -> float:
    """Return the share of right ones among the most frequent answers of one item."""
    right = next((row.extracted for row in samples if row.score == 1), None)
    return 0.0 if right is None else maj_at_k([row.extracted for row in samples], right, len(samples))
