"""Gates on simulated scores: how often they err, for the tests and, with more repeats, for benchmarks/gate.py.

A row has a difficulty that both models share and noise of its own on each side: right where skill + difficulty + noise
is above 0. With noise of 0.65 of the difficulty's spread the correlation of both sides' sums is 0.7, and a quarter of
the rows of a benchmark at 50 % differ between two runs of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from align.core.evaluation import gate as g
from align.core.evaluation.statistics import clustered_mean

SIZES = (30, 60, 80, 115, 198, 250, 300, 450, 500, 500, 541, 805, 817, 880, 1500)
"""Rows of a suite: AIME, MT-Bench, tau-bench, GPQA, safety probes, Arena-Hard, IFEval, AlpacaEval, TruthfulQA..."""


def shares(rng: np.random.Generator, rows: int, q: float, difference: float) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores [rows] of which a share q differs, by the difference on average."""
    u = rng.random(rows)
    gained, changed = u < (q + difference) / 2, u < q
    a = np.where(changed, ~gained, rng.random(rows) < 0.6)
    return a.astype(float), np.where(changed, gained, a).astype(float)


def two_runs(rng: np.random.Generator, rows: int, skill: float, loss: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores [rows] of two runs of one model, the second with a skill that is lower by the loss."""
    difficulty = rng.normal(size=rows)
    first, second = 0.65 * rng.normal(size=(2, rows))
    return (skill + difficulty + first > 0).astype(float), (skill - loss + difficulty + second > 0).astype(float)


def suite(rng: np.random.Generator, hurt: int | None = None) -> tuple[list[g.Benchmark], list[g.Domain]]:
    """Two runs of one model on 15 benchmarks: 0/1 scores, means of 4 samples, grades of two turns, three of safety.

    hurt: the domain, 0 to 3, on whose benchmarks the second run has 0.4 standard deviations less skill: it loses 8
    to 13 points of 100.
    """
    cases = []
    for index, rows in enumerate(SIZES):
        skill = rng.uniform(-0.5, 1.5)
        loss = 0.4 if index % 4 == hurt else 0.0
        name, role = f"b{index}", "safety" if rows in (250, 300, 450) else "watch"
        if rows in (30, 60):
            samples = np.repeat(two_runs(rng, rows, skill, loss), 4, axis=1)
            flips = rng.random(samples.shape) < 0.2
            a, b = np.abs(samples - flips).reshape(2, rows, 4).mean(axis=2)
            cases.append(g.Benchmark(name, a, b, 0.15, role=role))
        elif rows == 80:
            dialogues = rng.normal(size=80)
            noise = 0.5 * rng.normal(size=(2, 80, 2)) + 0.5 * rng.normal(size=(2, 80, 1))
            grades = np.clip(np.round(7 + dialogues[:, None] + noise), 1, 10)
            grades[1] -= 2 * loss
            a, b = grades.reshape(2, 160)
            cases.append(g.Benchmark(name, a, b, 0.5, np.repeat(np.arange(80), 2), role=role, span=9.0))
        else:
            cases.append(g.Benchmark(name, *two_runs(rng, rows, skill, loss), 0.05, role=role))
    watched = [index for index, case in enumerate(cases) if case.role == "watch"]
    weights = [{f"b{index}": 1.0 for index in watched if index % 4 == domain} for domain in range(4)]
    return cases, [g.Domain(f"d{domain}", each, 0.05) for domain, each in enumerate(weights)]


@dataclass(frozen=True)
class Shares:
    """Shares of the gates of a model that did not change."""

    regressed: float
    """Any benchmark or domain, of any role, was called regressed."""
    improved: float
    blocked: float
    """The outcome was regressed."""


def unchanged(repeats: int, seed: int) -> Shares:
    rng = np.random.default_rng(seed)
    results = [g.gate(*suite(rng)) for _ in range(repeats)]
    verdicts = [{each.verdict for each in (*result.benchmarks, *result.domains)} for result in results]
    regressed, improved = (np.mean([kind in each for each in verdicts]) for kind in ("regressed", "improved"))
    return Shares(float(regressed), float(improved), float(np.mean([each.outcome == "regressed" for each in results])))


def damaged(repeats: int, seed: int) -> tuple[float, float]:
    """Shares of gates that call a damaged domain regressed, and that call one of the other three so."""
    rng = np.random.default_rng(seed)
    results = [g.gate(*suite(rng, hurt=1)) for _ in range(repeats)]
    caught = [result.domains[1].verdict == "regressed" for result in results]
    others = [any(result.domains[index].verdict == "regressed" for index in (0, 2, 3)) for result in results]
    return float(np.mean(caught)), float(np.mean(others))


def passed(repeats: int, seed: int, rows: int, q: float, difference: float, margin: float) -> float:
    """Share of comparisons of 0/1 scores that pass a margin."""
    rng = np.random.default_rng(seed)
    cases = (g.Benchmark("b", *shares(rng, rows, q, difference)) for _ in range(repeats))
    return float(np.mean([g.compare(case).low > -margin for case in cases]))


def passed_exactly(rows: int, q: float, difference: float, margin: float, student: bool = False) -> float:
    """Chance to pass, summed over all counts that can occur but one in 10^7; with Student's interval if wanted."""
    z, t = stats.norm.ppf(0.95), stats.t.ppf(0.95, rows - 1)
    changed = stats.binom(rows, q)
    total = 0.0
    for both in range(int(changed.ppf(5e-8)), int(changed.ppf(1 - 5e-8)) + 1):
        gained = np.arange(both + 1)
        d = (2 * gained - both) / rows
        if student:
            passes = d - t * np.sqrt(np.maximum(0, both / rows - d * d) / (rows - 1)) > -margin
        else:
            b = -both + (2 * rows - 2 * gained + both) * -margin
            c = (both - gained) * margin * (1 + margin)
            lost = (np.sqrt(np.maximum(0, b * b - 8 * rows * c)) - b) / (4 * rows)
            variance = np.maximum(1e-300, (2 * lost - margin * (1 + margin)) / rows)
            passes = (d + margin) / np.sqrt(variance) > z
        weights = stats.binom.pmf(gained, both, (q + difference) / (2 * q))
        total += float(changed.pmf(both) * weights[passes].sum())
    return total


def passed_combined(repeats: int, seed: int, sizes: Sequence[int], q: float, margin: float) -> float:
    """Share of domains of several benchmarks that pass the margin by which all of them are worse."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(repeats):
        parts = [g.compare(g.Benchmark("b", *shares(rng, rows, q, -margin))) for rows in sizes]
        count += g.combine(parts, [1 / len(sizes)] * len(sizes)).low > -margin
    return count / repeats


def passed_means(repeats: int, seed: int, clusters: int, size: int, margin: float) -> float:
    """Share of comparisons of grades in clusters that pass the margin by which the candidate is worse."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), size)
    count = 0
    for _ in range(repeats):
        shared = rng.normal(size=(clusters, 1))
        a, b = (shared + 0.3 * rng.normal(size=(2, clusters, 1)) + 0.5 * rng.normal(size=(2, clusters, size))).reshape(
            2, -1
        )
        count += g.compare(g.Benchmark("b", a, b - margin, clusters=labels, span=100.0)).low > -margin
    return count / repeats


def covered(repeats: int, seed: int, clusters: int, size: int, between: float) -> tuple[float, float]:
    """Shares of 95 % intervals that hold the mean, with the clusters and as if rows were independent.

    between: standard deviation of the clusters' means where that of rows in a cluster is 1.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), size)
    hits = np.zeros(2)
    for _ in range(repeats):
        x = (between * rng.normal(size=(clusters, 1)) + rng.normal(size=(clusters, size))).reshape(-1)
        intervals = [clustered_mean(x, labels), clustered_mean(x)]
        hits += [each.low <= 0 <= each.high for each in intervals]
    with_clusters, without = hits / repeats
    return float(with_clusters), float(without)


def passed_samples(repeats: int, seed: int, rows: int, samples: int, margin: float) -> float:
    """Share of comparisons of means over samples of 0/1 scores that pass the margin by which the candidate is worse.

    A row has a chance to be right from the margin to 1 for the baseline, less the margin for the candidate;
    both sides share the row, not the samples.
    """
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(repeats):
        chance = rng.uniform(margin, 1, rows)
        a, b = (rng.binomial(samples, each) / samples for each in (chance, chance - margin))
        count += g.compare(g.Benchmark("b", a, b)).low > -margin
    return count / repeats
