"""Ratings of models from a file of votes between two of them, as Chatbot Arena publishes them. No model is run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from align.core.data.sources import load_rows
from align.core.evaluation.ratings import VOTES, Battles, Rating, battles, bradley_terry, elo, with_intervals
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Source

ANCHOR = ("mixtral-8x7b-instruct-v0.1", 1114.0)
"""Chatbot Arena's fixed point, where the file has votes on it."""
RESAMPLE_RIDGE = 1e-3
"""Keeps the rating of a model finite that loses every vote of a resample."""
MOST_SHOWN = 20
"""Faulty votes that are listed."""


@explaining()
def arena_ratings(
    votes: str | Path,
    system: Literal["bradley_terry", "elo"] = "bradley_terry",
    *,
    columns: Mapping[str, str] | None = None,
    anchor: tuple[str, float] | None = None,
    repeats: int = 100,
    seed: int = 0,
) -> dict[str, Rating]:
    """Return each model's rating with its 95 % bootstrap interval, best first.

    votes: a file with ``model_a``, ``model_b`` and ``winner`` (``model_a``, ``model_b``, ``tie``, ``tie (bothbad)`` or
    ``both_bad``). With ``tstamp`` they are taken in its order, which counts for Elo (K = 4, from 1000); votes whose
    ``anony`` is false are left out, as the leaderboard does. columns: other names of the file's columns, ``{"model_a":
    "left"}``. anchor: a model whose Bradley-Terry rating is given; None: mixtral-8x7b-instruct-v0.1 at 1114 where it
    has votes, else the mean is 1000. repeats: number of resamples of the votes.

    Raises AlignError for a file that cannot be read, a vote that is none, and where no finite ratings fit.
    """
    given = battles(_read(Source(path=str(votes), columns=dict(columns or {}))))
    if system == "elo":
        return with_intervals(elo, given, repeats=repeats, seed=seed)
    if anchor is None and ANCHOR[0] in given.names:
        anchor = ANCHOR

    def redraw(taken: Battles) -> dict[str, float]:
        """Rate a resample; one without the anchor has none."""
        there = {taken.names[number] for number in {*taken.first.tolist(), *taken.second.tolist()}}
        fixed = anchor if anchor is not None and anchor[0] in there else None
        return bradley_terry(taken, fixed, RESAMPLE_RIDGE)

    try:
        rate = partial(bradley_terry, anchor=anchor)
        return with_intervals(rate, given, redraw=redraw, repeats=repeats, seed=seed)
    except ValueError as error:
        fix = "add votes between these models and the others, or take system='elo'"
        raise AlignError(str(error), fix, where=str(votes)) from None


def _read(source: Source) -> list[tuple[str, str, float]]:
    """Return first model, second model and score of the first of each vote, in the order of their times."""
    rows = load_rows(source)
    problems = [problem for where, row in rows if (problem := _fault(row, where)) is not None]
    if problems:
        raise AlignError.gather(problems[:MOST_SHOWN])
    kept = [row for _, row in rows if row.get("anony") is not False]
    if not kept:
        raise AlignError("has no anonymous votes", "check its column `anony`", where=source.path)
    if all(isinstance(row.get("tstamp"), int | float) for row in kept):
        kept.sort(key=lambda row: float(row["tstamp"]))
    return [(row["model_a"], row["model_b"], VOTES[row["winner"]]) for row in kept]


def _fault(row: Mapping[str, Any], where: str) -> Problem | None:
    for name in ("model_a", "model_b", "winner"):
        if not isinstance(row.get(name), str):
            return Problem(where, f"has no text {name!r}", "name the file's columns: columns={'model_a': ...}")
    if row["winner"] not in VOTES:
        return Problem(where, f"has the winner {row['winner']!r}", f"known: {', '.join(VOTES)}")
    if row["model_a"] == row["model_b"]:
        return Problem(where, f"has {row['model_a']!r} against itself", "remove the vote")
    return None
