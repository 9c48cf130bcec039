"""What probes found (``align.schemas.project.Measured``), as evidence: where intervals are apart, and not otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from align.advisor.facts import Evidence
from align.advisor.thresholds import Thresholds
from align.schemas.project import Measured, Measurement


def evidence(found: Measured, target: float | None, limit: Thresholds) -> list[Evidence]:
    """What follows for the form's own fields; the measurements themselves are there as ``measured.*``.

    target: the metric's, where the project names one (``evals.target``), on the same scale as the scores.
    """
    return [*_numbers(found), *_baseline(found, target), *_domain(found, limit)]


def best_prompt(found: Measured) -> Measurement | None:
    """The better of the two scores that need no training."""
    tried = [m for m in (found.zero_shot, found.few_shot) if m is not None]
    return max(tried, key=lambda m: m.value) if tried else None


def apart(a: Measurement, b: Measurement) -> int:
    """1 where a is above b beyond both intervals, -1 where it is below, 0 where they overlap."""
    return (a.low > b.high) - (a.high < b.low)


def rows_to_settle(a: Measurement, b: Measurement | float) -> int | None:
    """How many rows would part two intervals that overlap, if their values stayed.

        n' = n ((h_a + h_b) / |a - b|)^2,  h half the width, n the fewer rows

    since widths fall as 1 / sqrt(n). None where the values are the same: no number would.
    """
    other = b if isinstance(b, Measurement) else Measurement(value=b, low=b, high=b, rows=a.rows)
    gap = abs(a.value - other.value)
    if gap == 0:
        return None
    halves = (a.high - a.low) / 2 + (other.high - other.low) / 2
    return math.ceil(min(a.rows, other.rows) * (halves / gap) ** 2)


def _numbers(found: Measured) -> Iterator[Evidence]:
    for name, value in found:
        if value is not None:
            words = f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g}, {value.rows} rows)"
            yield _said(f"measured.{name}", value.model_dump(), f"{name.replace('_', ' ')}: {words}")


def _baseline(found: Measured, target: float | None) -> Iterator[Evidence]:
    best = best_prompt(found)
    if best is None or target is None:
        return
    words = f"untouched model: {best.value:.3g} ({best.low:.3g} to {best.high:.3g}) against {target:.3g}"
    if best.low >= target:
        yield _said("evals.baseline", best.value, words)
        yield _said("behaviour.prompt_falls_short", False, words)
    elif best.high < target:
        yield _said("evals.baseline", best.value, words)
        yield _said("behaviour.prompt_falls_short", True, words)


def _domain(found: Measured, limit: Thresholds) -> Iterator[Evidence]:
    corpus, reference = found.corpus_bits, found.reference_bits
    if corpus is None or reference is None:
        return
    words = f"bits per byte: corpus {corpus.value:.3g}, ordinary text {reference.value:.3g}"
    if corpus.low > limit.unseen_bits_ratio * reference.high:
        yield _said("knowledge.unseen_domain", True, words)
    elif corpus.high < limit.unseen_bits_ratio * reference.low:
        yield _said("knowledge.unseen_domain", False, words)


def _said(field: str, value: Any, words: str) -> Evidence:
    return Evidence(field, value, quote=words, source="measured")
