"""Ratings of models from votes between two of them (Chatbot Arena), and HELM's mean win rate over tables of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from align.core.evaluation.logistic import fit_ridge
from align.core.evaluation.statistics import Floats, Labels, cluster_index, resampled_rows

ELO_UNIT = 400 / math.log(10)
"""Rating points for one unit of log odds: 400 points are odds of 10 to 1."""
MEAN = 1000.0

VOTES: dict[str, float] = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5}
"""Score of the first model for each winner that Chatbot Arena's files name."""


@dataclass(frozen=True)
class Battles:
    """Votes in the order in which they were given."""

    names: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """Numbers [n] of the two models in ``names``."""
    score: Floats
    """Score [n] of the first: 1 won, 0.5 tie, 0 lost."""

    def take(self, rows: NDArray[np.int64]) -> Battles:
        """Return these rows, in this order."""
        return Battles(self.names, self.first[rows], self.second[rows], self.score[rows])


@dataclass(frozen=True)
class Rating:
    """A model's rating with its bootstrap interval."""

    rating: float
    low: float
    high: float
    battles: int


def battles(votes: Iterable[tuple[str, str, float]]) -> Battles:
    """Return votes (first model, second model, score of the first) as arrays; names in order of first appearance.

    Raises ValueError for no vote, a score outside [0, 1] and a model against itself.
    """
    rows = list(votes)
    if not rows:
        raise ValueError("no votes")
    names: dict[str, int] = {}
    for number, (first, second, score) in enumerate(rows):
        if not 0 <= score <= 1 or first == second:
            raise ValueError(f"vote {number}: {first} against {second} with a score of {score}")
        names.setdefault(first, len(names))
        names.setdefault(second, len(names))
    a = np.array([names[row[0]] for row in rows], np.int64)
    b = np.array([names[row[1]] for row in rows], np.int64)
    return Battles(tuple(names), a, b, np.array([row[2] for row in rows], float))


def elo(votes: Battles, k: float = 4.0, initial: float = MEAN) -> dict[str, float]:
    """Return online Elo ratings, as Chatbot Arena computed them: R += K (S - E), E = 1 / (1 + 10^((R_b - R_a) / 400)).

    They depend on the order of the votes: the last ones count most.
    """
    ratings = [initial] * len(votes.names)
    for a, b, score in zip(votes.first.tolist(), votes.second.tolist(), votes.score.tolist(), strict=True):
        change = k * (score - 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400)))
        ratings[a] += change
        ratings[b] -= change
    return dict(zip(votes.names, ratings, strict=True))


def bradley_terry(votes: Battles, anchor: tuple[str, float] | None = None, ridge: float = 0.0) -> dict[str, float]:
    """Return Bradley-Terry ratings of greatest likelihood, 400 / ln 10 points for a unit of log odds; ties count 1/2.

        P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400))

    Their mean is 1000, or with an anchor (name, rating) the named model has that rating. The order of votes does not
    matter. ridge: penalty of squared log odds, which keeps ratings finite. Without it raises ValueError where models
    took no point from all others, whose rating would be infinite; always for an anchor without votes.
    """
    if anchor is not None and anchor[0] not in votes.names:
        raise ValueError(f"the anchor {anchor[0]} has no votes")
    count = len(votes.names)
    games, points = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(games, (votes.first, votes.second), 1.0)
    np.add.at(points, (votes.first, votes.second), votes.score)
    if not ridge:
        _check_finite(votes.names, points + (games - points).T)
    first, second = np.nonzero(games)
    pairs = np.arange(len(first))
    design = np.zeros((len(first), count))
    design[pairs, first], design[pairs, second] = 1.0, -1.0
    weights = games[first, second]
    theta = fit_ridge(design, points[first, second] / weights, weights, ridge)
    shift = MEAN - ELO_UNIT * float(theta.mean())
    if anchor is not None:
        shift = anchor[1] - ELO_UNIT * float(theta[votes.names.index(anchor[0])])
    return {name: shift + ELO_UNIT * float(each) for name, each in zip(votes.names, theta, strict=True)}


def _check_finite(names: Sequence[str], points: Floats) -> None:
    """Raise ValueError unless points [M, M] of row against column lead from each model to each other one."""
    components, label = connected_components(csr_array(points > 0), directed=True, connection="strong")
    if components == 1:
        return
    for component in range(components):
        inside = label == component
        if not points[np.ix_(inside, ~inside)].any():
            losers = ", ".join(np.array(names)[inside].tolist())
            raise ValueError(f"{losers} took no point from the other models: no finite rating fits")


def with_intervals(
    rate: Callable[[Battles], Mapping[str, float]],
    votes: Battles,
    clusters: Labels | None = None,
    *,
    redraw: Callable[[Battles], Mapping[str, float]] | None = None,
    repeats: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Rating]:
    """Return each model's rating with its percentile interval under resampled votes, best first.

    clusters: labels [n] of votes that depend on each other, as those on one question; they are drawn together. redraw:
    rates the resamples, by default as ``rate`` does; for Bradley-Terry give it a small ridge, since in a resample a
    model may lose every vote. A model without votes in a resample is left out of it. Elo ratings take the votes in the
    order in which they were drawn.
    """
    rated, redraw = rate(votes), redraw or rate
    index = np.arange(len(votes.score)) if clusters is None else cluster_index(clusters, len(votes.score))
    draws = np.full((repeats, len(votes.names)), np.nan)
    for draw, rows in enumerate(resampled_rows(index, int(index.max()) + 1, repeats, seed)):
        taken = votes.take(rows)
        there = np.union1d(taken.first, taken.second)
        found = redraw(taken)
        draws[draw, there] = [found[votes.names[number]] for number in there]
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    counts = np.bincount(votes.first, minlength=len(votes.names)) + np.bincount(
        votes.second, minlength=len(votes.names)
    )
    ratings = {
        name: Rating(rated[name], float(low[number]), float(high[number]), int(counts[number]))
        for number, name in enumerate(votes.names)
    }
    return dict(sorted(ratings.items(), key=lambda pair: -pair[1].rating))


def mean_win_rates(
    scores: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool | None]
) -> dict[str, float | None]:
    """Return HELM's mean win rate of each model: in a column, (models beaten + ties / 2) / (models there - 1).

    scores: model to column to score, where it has one. A column without a direction (None) or with fewer than two
    models is left out; a model without any other has None. The number depends on which other models are in the table,
    so it is for showing and never for a gate. Raises ValueError for a score that is not finite.
    """
    rates: dict[str, list[float]] = {model: [] for model in scores}
    columns = dict.fromkeys(column for row in scores.values() for column in row)
    for column in columns:
        there = {model: row[column] for model, row in scores.items() if column in row}
        if not all(math.isfinite(score) for score in there.values()):
            raise ValueError(f"{column}: a score is not finite")
        direction = higher_is_better.get(column)
        if direction is None or len(there) < 2:
            continue
        values = np.array(list(there.values()), float) * (1 if direction else -1)
        for model, value in zip(there, values, strict=True):
            beaten, tied = float(np.sum(values < value)), float(np.sum(values == value)) - 1
            rates[model].append((beaten + tied / 2) / (len(there) - 1))
    return {model: float(np.mean(each)) if each else None for model, each in rates.items()}
