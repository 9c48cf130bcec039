"""Win rates against a baseline whose judge's love of length and markdown is taken out.

AlpacaEval 2's length-controlled win rate (Dubois et al. 2404.04475) and Arena-Hard's scores with style control. Shares
are 0 to 1. Resampling draws whole prompts: two games on one prompt, and a verdict that counts three times, are no three
independent rows.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from align.core.evaluation.logistic import fit_lasso, fit_ridge, soft_log_loss
from align.core.evaluation.statistics import Floats, Labels, Metric, cluster_index, resampled_rows

# AlpacaEval 2

PENALTIES: tuple[float, ...] = tuple(10.0 ** (-4 + 8 * step / 9) for step in range(10))
"""Inverse penalties tried: ten from 1e-4 to 1e4, evenly on a logarithmic scale."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Weight of a row of a gamed baseline: lambda / 2, lambda = 0.2 and two such baselines."""


@dataclass(frozen=True)
class Gamed:
    """Rows of AlpacaEval's two gamed baselines, verbose and concise, which hold the length's coefficient in place."""

    preference: Floats
    """P(gamed baseline wins) [g]."""
    length: Floats
    """Length difference [g] as published: baseline less model, divided by its standard deviation."""
    difficulty: Floats
    """Instruction difficulty [g]."""


@dataclass(frozen=True)
class LengthControlled:
    """Win rates of a model against the baseline."""

    win_rate: float
    """Length-controlled: had both sides been equally long."""
    low: float
    high: float
    """Percentile interval under resampled prompts, 95 % by default."""
    raw: float
    raw_standard_error: float
    discrete: float
    """Raw, each preference rounded to won, tie or lost."""
    length: float
    difficulty: float
    constant: float
    """Coefficients phi, theta and psi; those left out are 0."""
    inverse_penalty: float
    rows: int
    invalid: int
    """Rows without a preference: they have a part in no rate but the length-controlled, through their difficulty."""
    extreme: bool
    """The control moved the rate by over 10 points and over a quarter of the way to 0 or 1: the fit may have failed."""


def length_controlled_win_rate(
    preference: ArrayLike,
    baseline_length: ArrayLike,
    model_length: ArrayLike,
    difficulty: ArrayLike | None = None,
    gamed: Gamed | None = None,
    *,
    clusters: Labels | None = None,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LengthControlled:
    """Return AlpacaEval 2's length-controlled win rate, the minimal one without difficulty and gamed rows.

        logit P(model wins) = phi tanh(D) + theta difficulty + psi [not gamed]
        D = (baseline length - model length) / its standard deviation (n - 1 in it, not centred)
        win rate = mean of s(theta difficulty + psi) over the prompts

    preference [n]: the judge's probability that the model wins, in [0, 1], NaN for an invalid verdict. Lengths [n] in
    characters. The fit is a lasso whose penalty is found by `FOLDS`-fold cross-validation over prompts; resamples keep
    it. For a model against itself the rate is 1/2. Raises ValueError for other lengths of arrays, a preference outside
    [0, 1], a length or difficulty that is not finite, and where no row is valid.
    """
    p, a, b = (np.asarray(part, float) for part in (preference, baseline_length, model_length))
    hard = np.zeros(len(p)) if difficulty is None else np.asarray(difficulty, float)
    if {part.shape for part in (a, b, hard)} != {p.shape} or p.ndim != 1:
        raise ValueError(f"{p.shape} preferences, {a.shape} and {b.shape} lengths and {hard.shape} difficulties")
    valid = ~np.isnan(p)
    if not valid.any() or not ((p[valid] >= 0) & (p[valid] <= 1)).all():
        raise ValueError("no preference is valid" if not valid.any() else "a preference is outside [0, 1]")
    if not np.isfinite([a, b, hard]).all():
        raise ValueError("a length or difficulty is not finite")

    design = _length_design(_standardised(a - b), hard, np.ones(len(p)), difficulty is not None)
    extra = None if gamed is None else _gamed_rows(gamed, difficulty is not None)
    penalty = _chosen_penalty(*_with_gamed(design[valid], p[valid], extra))

    def fitted(rows: NDArray[np.int64]) -> tuple[float, Floats]:
        seen = rows[valid[rows]]
        c = fit_lasso(*_with_gamed(design[seen], p[seen], extra), penalty)
        return float(expit(design[rows, 1:] @ c[1:]).mean()), c

    rate, coefficients = fitted(np.arange(len(p)))
    index = np.arange(len(p)) if clusters is None else cluster_index(clusters, len(p))
    draws = [
        fitted(rows)[0] for rows in resampled_rows(index, int(index.max()) + 1, repeats, seed) if valid[rows].any()
    ]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if draws else (0.0, 1.0)
    won = p[valid]
    raw = float(won.mean())
    discrete = np.select([won > 0.5, won < 0.5], [1.0, 0.0], 0.5)
    end = 1.0 if rate > raw else 0.0
    return LengthControlled(
        win_rate=rate,
        low=float(low),
        high=float(high),
        raw=raw,
        raw_standard_error=float(won.std(ddof=1) / len(won) ** 0.5) if len(won) > 1 else 0.0,
        discrete=float(discrete.mean()),
        length=float(coefficients[0]),
        difficulty=float(coefficients[1]) if difficulty is not None else 0.0,
        constant=float(coefficients[-1]),
        inverse_penalty=penalty,
        rows=len(p),
        invalid=int((~valid).sum()),
        extreme=abs(rate - raw) > max(0.1, abs(end - raw) / 4),
    )


def length_controlled_metric(inverse_penalty: float = PENALTIES[-1], gamed: Gamed | None = None) -> Metric:
    """Return the length-controlled win rate as a metric for a paired bootstrap and the gate.

    It takes rows [n, 3], or [n, 4] with difficulties: preference, baseline length, model length. The penalty is given,
    since choosing it anew in each resample costs fifty fits; the largest inverse hardly penalises.
    """

    def metric(rows: NDArray[Any]) -> float:
        p, a, b = rows[:, :3].T
        hard = rows[:, 3] if rows.shape[1] > 3 else np.zeros(len(rows))
        design = _length_design(_standardised(a - b), hard, np.ones(len(rows)), rows.shape[1] > 3)
        extra = None if gamed is None else _gamed_rows(gamed, rows.shape[1] > 3)
        c = fit_lasso(*_with_gamed(design, p, extra), inverse_penalty)
        return float(expit(design[:, 1:] @ c[1:]).mean())

    return metric


Rows = tuple[Floats, Floats, Floats]
"""Design [n, p], outcomes [n] and weights [n]."""


def _standardised(difference: Floats) -> Floats:
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return np.asarray(difference / spread) if spread else np.zeros_like(difference)


def _length_design(length: Floats, difficulty: Floats, not_gamed: Floats, with_difficulty: bool) -> Floats:
    columns = [np.tanh(length), difficulty, not_gamed] if with_difficulty else [np.tanh(length), not_gamed]
    return np.stack(columns, axis=1)


def _gamed_rows(gamed: Gamed, with_difficulty: bool) -> Rows:
    count = len(gamed.preference)
    design = _length_design(gamed.length, gamed.difficulty, np.zeros(count), with_difficulty)
    return design, gamed.preference, np.full(count, GAMED_WEIGHT)


def _with_gamed(design: Floats, preference: Floats, gamed: Rows | None) -> Rows:
    if gamed is None:
        return design, preference, np.ones(len(preference))
    more, theirs, weights = gamed
    weights = np.concatenate([weights, np.ones(len(preference))])
    return np.concatenate([more, design]), np.concatenate([theirs, preference]), weights


def _chosen_penalty(design: Floats, outcomes: Floats, weights: Floats) -> float:
    """Return the inverse penalty with the least mean over folds of the weighted loss on the rows held out."""
    fold = np.arange(len(outcomes)) % FOLDS
    losses = np.zeros(len(PENALTIES))
    for held_out in range(min(FOLDS, len(outcomes))):
        here, rest = fold == held_out, fold != held_out
        for number, penalty in enumerate(PENALTIES):
            c = fit_lasso(design[rest], outcomes[rest], weights[rest], penalty)
            losses[number] += float(np.mean(weights[here] * soft_log_loss(design[here] @ c, outcomes[here])))
    return PENALTIES[int(np.argmin(losses))]


# Arena-Hard

Version = Literal["v0.1", "v2"]
STRICT_WEIGHT = 3
"""A verdict of "much better" counts as often."""

_LABEL = re.compile(r"([AB])(<<|>>|<|>|=)([AB])")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
"""The line that opens a code block (CommonMark 4.5)."""
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST = re.compile(r"^[ \t]*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


@dataclass(frozen=True)
class Style:
    """Length and markdown of an answer."""

    tokens: int
    headers: int
    lists: int
    """List items."""
    bold: int


@dataclass(frozen=True)
class ArenaItem:
    """A model's two games on one prompt."""

    uid: Hashable
    model: str
    verdicts: tuple[str | None, str | None]
    """Labels such as A>>B: in the first game A is the baseline, in the second the model. None: no verdict was read."""
    style: Style | None = None
    baseline_style: Style | None = None


@dataclass(frozen=True)
class ArenaScore:
    """A model's win rate against the baseline."""

    win_rate: float
    low: float
    high: float
    items: int
    invalid: int
    """Games without a verdict, of two an item."""


def style(text: str, tokens: int) -> Style:
    """Return the length, given in tokens, and the markdown outside code blocks of an answer.

    Fenced blocks go whole, fences included, also one that is never closed: a comment in Python is no header.
    """
    prose = "\n".join(_outside_code(text))
    return Style(tokens, *(len(pattern.findall(prose)) for pattern in (_HEADER, _LIST, _BOLD)))


def _outside_code(text: str) -> Iterator[str]:
    """Yield the lines that are in no fenced block, line by line: a pattern over the whole text could take minutes."""
    fence = ""
    for line in text.split("\n"):
        if fence:
            closing = line.strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                fence = ""
        elif opening := _FENCE.match(line):
            fence = opening[1]
        else:
            yield line


def style_features(model: Style, baseline: Style, version: Version = "v2") -> tuple[float, float, float, float]:
    """Return the differences of two answers in length, headers, list items and bold text, each in (-1, 1).

    v2: (m - b) / (m + b) of the tokens, and (d_m - d_b) / (d_m + d_b + 1) of densities d = count / (tokens + 1).
    v0.1: (m - b) / (m + b + 1) of the four counts.
    """
    m, b = (np.array([each.tokens, each.headers, each.lists, each.bold], float) for each in (model, baseline))
    if version == "v0.1":
        differences = (m - b) / (m + b + 1)
    else:
        of_length = (m[:1] - b[:1]) / np.maximum(1.0, m[:1] + b[:1])
        m, b = m[1:] / (m[0] + 1), b[1:] / (b[0] + 1)
        differences = np.concatenate([of_length, (m - b) / (m + b + 1)])
    length, headers, lists, bold = differences.tolist()
    return length, headers, lists, bold


def outcome(label: str, model_is_first: bool) -> tuple[float, int]:
    """Return the model's outcome of a game (1 won, 0.5 tie, 0 lost) and how often it counts: 3 for << and >>, else 1.

    Raises ValueError for a label that is none, such as A>A.
    """
    match = _LABEL.fullmatch(label)
    if not match or match[1] == match[3]:
        raise ValueError(f"the verdict {label!r} is no label such as A>B, A>>B or A=B")
    left, sign, _ = match.groups()
    if sign == "=":
        return 0.5, 1
    winner_is_a = (left == "A") == (">" in sign)
    return float(winner_is_a == model_is_first), STRICT_WEIGHT if len(sign) == 2 else 1


def arena_hard_scores(
    items: Sequence[ArenaItem],
    *,
    version: Version = "v2",
    style_control: bool = False,
    center: bool = False,
    repeats: int = 100,
    seed: int = 0,
) -> dict[str, ArenaScore]:
    """Return each model's score on Arena-Hard with its interval under resampled prompts, best first.

    Without style control it is the mean outcome, strict verdicts three times; so is v0.1's Bradley-Terry win rate,
    since each model meets the baseline alone. With it

        logit P(model wins a game) = theta_model - theta_baseline + beta . features / their standard deviation
        score = s(theta_model - theta_baseline)

    is fitted over all models together, to its optimum; the leaderboard's search stops after 50 steps, up to two points
    before it. center: subtract the features' weighted mean over all games first, as the leaderboard does; the score
    then holds for the style of an average model and depends on which others are there, and with a single model nothing
    is controlled for. Not centred it holds for equal style. v0.1 has features of its own and scikit-learn's default
    ridge. Intervals are those published: 90 % for v2, 95 % for v0.1.

    Items of one uid are drawn together. A game without verdict is counted and leaves the item's other one. Raises
    ValueError for a label that is none, a model twice on one uid, no verdict of a model, and with style control for an
    item without styles.
    """
    games = _games(items)
    names = list(dict.fromkeys(item.model for item in items))
    counts = {name: sum(item.model == name for item in items) for name in names}
    for name in names:
        if not (games.model == names.index(name)).any():
            raise ValueError(f"{name}: no game has a verdict")
    design, ridge = _style_design(games, items, version, center) if style_control else (np.empty((0, 0)), np.empty(0))

    def scores(multiplicity: Floats) -> Floats:
        weights = games.weight * multiplicity
        if style_control:
            theta = fit_ridge(design, games.outcome, weights, ridge)[: len(names) + 1]
            return np.asarray(expit(theta[:-1] - theta[-1]))
        won, played = (np.bincount(games.model, part, len(names)) for part in (weights * games.outcome, weights))
        return np.asarray(np.divide(won, played, out=np.full(len(names), np.nan), where=played > 0))

    index = cluster_index([item.uid for item in items], len(items))
    found = scores(np.ones(len(games.weight)))
    draws = np.array(
        [
            scores(np.bincount(rows, minlength=len(items))[games.item].astype(float))
            for rows in resampled_rows(index, int(index.max()) + 1, repeats, seed)
        ]
    )
    low, high = np.nanquantile(draws, [0.05, 0.95] if version == "v2" else [0.025, 0.975], axis=0)
    result = {
        name: ArenaScore(
            win_rate=float(found[number]),
            low=float(low[number]),
            high=float(high[number]),
            items=counts[name],
            invalid=2 * counts[name] - int((games.model == number).sum()),
        )
        for number, name in enumerate(names)
    }
    return dict(sorted(result.items(), key=lambda pair: -pair[1].win_rate))


_FINITE = 1e-6
"""A ridge so small that it only keeps the coefficient of a model finite that won, or lost, every game of a resample."""


@dataclass(frozen=True)
class _Games:
    item: NDArray[np.int64]
    model: NDArray[np.int64]
    outcome: Floats
    weight: Floats


def _games(items: Sequence[ArenaItem]) -> _Games:
    if not items:
        raise ValueError("no items")
    seen: set[tuple[Hashable, str]] = set()
    numbers: Mapping[str, int] = {
        name: number for number, name in enumerate(dict.fromkeys(each.model for each in items))
    }
    rows: list[tuple[int, int, float, int]] = []
    for index, item in enumerate(items):
        if (item.uid, item.model) in seen:
            raise ValueError(f"{item.model} has two items of the uid {item.uid}")
        seen.add((item.uid, item.model))
        for game, label in enumerate(item.verdicts):
            if label is not None:
                rows.append((index, numbers[item.model], *outcome(label, model_is_first=game == 1)))
    which, model, outcomes, weights = zip(*rows, strict=True) if rows else ((), (), (), ())
    return _Games(np.array(which, np.int64), np.array(model, np.int64), np.array(outcomes), np.array(weights, float))


def _style_design(games: _Games, items: Sequence[ArenaItem], version: Version, center: bool) -> tuple[Floats, Floats]:
    """Return the design [games, models + 1 + 4], the baseline's column after the models', and each column's ridge."""
    features = _features(items, version)[games.item]
    spread = features.std(axis=0, ddof=1)
    mean = np.average(features, axis=0, weights=games.weight)
    features = (features - mean * center) / np.where(spread > 0, spread, 1.0)
    models = np.eye(int(games.model.max()) + 1)[games.model]
    design = np.concatenate([models, np.full((len(models), 1), -1.0), features], axis=1)
    if version == "v2":
        return design, np.full(design.shape[1], _FINITE)
    # Each battle stands twice in v0.1's rows, which halves the ridge of 1; its ratings are in units of log 10.
    return design, np.repeat([0.5 / np.log(10) ** 2, 0.5], [models.shape[1] + 1, features.shape[1]])


def _features(items: Sequence[ArenaItem], version: Version) -> Floats:
    features = []
    for item in items:
        if item.style is None or item.baseline_style is None:
            raise ValueError(f"{item.model} on {item.uid}: style control needs the styles of both answers")
        features.append(style_features(item.style, item.baseline_style, version))
    return np.array(features, float)
