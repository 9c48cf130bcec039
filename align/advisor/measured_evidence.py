"""Measurements (``align.schemas.project.Measured``) as evidence, only where confidence intervals do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Status
from align.advisor.thresholds import Thresholds
from align.schemas.project import Measured, Measurement, Project

Z2 = 1.959963984540054**2
"""z^2 of a 95 % interval. Wilson's interval of n rows is as wide as a normal one of n + z^2 rows."""


def add_measurements(evidence: Sequence[Evidence], found: Measured, limit: Thresholds) -> list[Evidence]:
    """Return the evidence with the measurements as ``measured.*`` and their consequences for other fields.

    The target that scores are held against is the one that ``evidence`` names (``evals.target``).
    """
    project = gather(evidence).project.model_copy(update={"measured": found})
    return [*evidence, *_numbers(found), *_baseline(project), *_attempts(project), *_domain(found, limit)]


def best_prompt(found: Measured) -> Measurement | None:
    """Return the better of the two scores that need no training."""
    tried = [m for m in (found.zero_shot, found.few_shot) if m is not None]
    return max(tried, key=lambda m: m.value) if tried else None


def lookup_helps(found: Measured) -> bool | None:
    """Return True where passages raised the score, False where they lowered it, None where intervals overlap."""
    if found.closed_book is None or found.open_book is None:
        return None
    side = apart(found.open_book, found.closed_book)
    return side > 0 if side else None


def target(project: Project) -> float | None:
    """Return the target where it is in the unit of the measurements: a reward's score, or F1 where F1 is the metric."""
    metric, score = project.evals.metric or "", project.measured.score or ""
    return project.evals.target if "f1" in metric.casefold() or "F1" not in score else None


def apart(a: Measurement, b: Measurement | float) -> int:
    """1 where a is above b beyond both intervals, -1 where it is below, 0 where they overlap."""
    other = _measurement(b)
    return (a.low > other.high) - (a.high < other.low)


def rows_to_settle(a: Measurement, b: Measurement | float) -> int | None:
    """Return the rows (of each) at which two overlapping intervals would separate, if their values stayed.

    Half the width of Wilson's interval is c / sqrt(m) with m = n + z^2 (c falling towards z sqrt(p (1 - p))), its
    centre s z^2 / m off the value (s at most |1/2 - p|; of two, the centres come nearer by gap z^2 / m). So they part
    where

        gap m - C sqrt(m) - s z^2 >= 0,  C = c_a + c_b

    For means and ratios, whose intervals are z s / sqrt(n), this asks for a few rows more than needed. None where the
    values are the same: no number would.
    """
    other = _measurement(b)
    gap = abs(a.value - other.value)
    if gap == 0:
        return None
    c = sum((m.high - m.low) / 2 * math.sqrt(m.rows + Z2) for m in (a, other))
    off = gap if isinstance(b, Measurement) else abs(0.5 - a.value)
    root = (c + math.sqrt(c * c + 4 * gap * off * Z2)) / (2 * gap)
    return max(a.rows, other.rows, math.ceil(root * root - Z2)) + 1  # + 1: to touch is not to part


def _measurement(b: Measurement | float) -> Measurement:
    return b if isinstance(b, Measurement) else Measurement(value=b, low=b, high=b, rows=0)


def _numbers(found: Measured) -> Iterator[Evidence]:
    for name, value in found:
        if value is not None:
            yield _evidence(f"measured.{name}", value, f"{name.replace('_', ' ')}: {value}")


def _baseline(project: Project) -> Iterator[Evidence]:
    best, wanted = best_prompt(project.measured), target(project)
    if best is None or wanted is None:
        return
    words = f"untouched model: {best}, wanted {wanted:.3g}"
    if best.low >= wanted or best.high < wanted:
        yield _evidence("evals.baseline", best.value, words)
        yield _evidence("behaviour.prompt_falls_short", best.high < wanted, words)


def _attempts(project: Project) -> Iterator[Evidence]:
    """Yield that prompting was tried, since it was measured; retrieval was measured too, but is not in use yet."""
    for method, score in (("prompting", project.measured.zero_shot), ("few_shot", project.measured.few_shot)):
        if score is not None:
            yield _evidence(f"tried.{method}", True, f"{method.replace('_', ' ')} measured: {score}", "tried")


def _domain(found: Measured, limit: Thresholds) -> Iterator[Evidence]:
    corpus, reference = found.corpus_bits, found.reference_bits
    if corpus is None or reference is None:
        return
    words = f"bits per byte: corpus {corpus}, ordinary text {reference}"
    side = apart(corpus, rescaled(reference, limit.unseen_bits_ratio))
    if side:
        yield _evidence("knowledge.unseen_domain", side > 0, words)


def rescaled(m: Measurement, factor: float) -> Measurement:
    """The same in a unit ``factor`` times as small."""
    return m.model_copy(update={"value": m.value * factor, "low": m.low * factor, "high": m.high * factor})


def _evidence(field: str, value: Any, words: str, status: Status = "asserted") -> Evidence:
    return Evidence(field, value, status, quote=words, source="measured")
