"""Find rows that contain prompts of an evaluation (contamination), word for word or for the most part.

The n-gram rule is that of Tulu 3 (Lambert et al. 2024, section 3.2): a row is contaminated where more than half the
words of one evaluation prompt stand in the row in runs of 8 words. What many prompts of a suite share ("Answer the
following multiple choice question ...") says nothing of one of them and does not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.core.data.lint.finding import Lint, LintFinding, Places, finding
from align.core.data.lint.row_view import RowView, digest, hashes, normal, windows, words
from align.core.data.rows import BadRow
from align.core.data.sources import Reading
from align.schemas.errors import AlignError
from align.schemas.run import Source

RUN = 8
"""Consecutive words that must be the same (Tulu 3; GPT-3 took 13, and counted any such run as a collision)."""
COVERED = 0.5
"""The share of a prompt's words above which it counts as seen."""
SHARED = 16
"""The number of prompts from which on a run of words counts as boilerplate of the suite."""


@dataclass(frozen=True, slots=True)
class Suite:
    """An evaluation: its name and its prompts."""

    name: str
    prompts: Sequence[str]


def read_suite(path: str, name: str | None = None) -> Suite:
    """Read the prompts of a data file (of rows without one, the whole text). Raises AlignError if it cannot be read.

    Columns may be called as benchmarks call them: ``question``, ``query``, ``problem``, ``input``, ``instruction``.
    """
    prompts = list[str]()
    for item in _open(path).rows(unique=False):
        if isinstance(item, BadRow):
            raise AlignError(f"{item.what} [{item.kind}]", "fix the evaluation's file first", where=item.where)
        prompts.append(RowView(0, item.record).question)
    return Suite(name or Path(path).name, prompts)


_PROMPT_COLUMNS = ("question", "query", "problem", "input", "instruction")


def _open(path: str) -> Reading:
    try:
        return Reading(Source(path=path))
    except AlignError as error:
        for name in _PROMPT_COLUMNS:
            try:
                return Reading(Source(path=path, format="prompt", columns={"prompt": name}))
            except AlignError:
                continue
        raise error


class EvalOverlap(Lint):
    """Rows that contain prompts of evaluation suites."""

    def __init__(self, suites: Sequence[Suite]) -> None:
        self.suites = suites
        prompts = [(index, normal(prompt)) for index, suite in enumerate(suites) for prompt in suite.prompts]
        self._suite = np.array([index for index, _ in prompts], np.int64)
        self._exact: Mapping[int, list[int]] = _by_digest([text for _, text in prompts])
        self._runs, self._item, self._at, self._length = _index([hashes(words(text)) for _, text in prompts])
        self._rows: dict[str, dict[int, set[int]]] = {"exact": {}, "ngram": {}}

    def see(self, row: RowView) -> None:
        """Look up the prompt of a row, and each run of its words."""
        same = {item for text in {row.question, row.normal} - {""} for item in self._exact.get(digest(text), ())}
        if same:
            self._rows["exact"][row.number] = same
        if held := self._held(row.hashes) - same:
            self._rows["ngram"][row.number] = held

    def _held(self, row: NDArray[np.uint64]) -> set[int]:
        """Return the prompts of which the row contains more than the share COVERED."""
        runs = windows(row, RUN)
        if not len(self._runs) or not len(runs):
            return set()
        low = np.searchsorted(self._runs, runs)
        hits = np.unique(low[self._runs[np.minimum(low, len(self._runs) - 1)] == runs])
        if not len(hits):
            return set()
        covered = defaultdict[int, set[int]](set)
        high = np.searchsorted(self._runs, self._runs[hits], "right")
        for first, last in zip(hits.tolist(), high.tolist(), strict=True):
            for at in range(first, last):
                start = int(self._at[at])
                covered[int(self._item[at])].update(range(start, start + RUN))
        return {item for item, places in covered.items() if len(places) > COVERED * self._length[item]}

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield findings for rows with the same prompt, and for rows that contain most of one."""
        for how, rows in self._rows.items():
            if not rows:
                continue
            items = np.array(sorted({item for held in rows.values() for item in held}), np.int64)
            hit = Counter(self._suite[items].tolist())
            by_suite = {
                self.suites[suite].name: f"{count:,} of {len(self.suites[suite].prompts):,}"
                for suite, count in hit.items()
            }
            listed = "; ".join(f"{count} of {name}" for name, count in sorted(by_suite.items()))
            yield finding(f"eval-overlap-{how}", places, rows, suites=listed, by_suite=by_suite, n=RUN)


def _by_digest(texts: Sequence[str]) -> dict[int, list[int]]:
    found = defaultdict[int, list[int]](list)
    for item, text in enumerate(texts):
        if text:
            found[digest(text)].append(item)
    return dict(found)


def _index(
    items: Sequence[NDArray[np.uint64]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs of all prompts, sorted, with the prompt of each and its position there, without boilerplate.

    The fourth array gives for each prompt the number of its words that those runs cover.
    """
    runs = [windows(item, RUN) for item in items]
    every = np.concatenate([*runs, np.empty(0, np.uint64)])
    item = np.repeat(np.arange(len(runs)), [len(run) for run in runs]).astype(np.int64)
    at = np.concatenate([*(np.arange(len(run)) for run in runs), np.empty(0, np.int64)]).astype(np.int64)
    order = np.lexsort((at, item, every))
    every, item, at = every[order], item[order], at[order]
    # Each run counts once for a prompt, however often it occurs there.
    differs = (every[1:] != every[:-1]) | (item[1:] != item[:-1])
    new = np.append(True, differs)[: len(every)]
    names, inverse = np.unique(every, return_inverse=True)
    kept = np.bincount(inverse[new], minlength=len(names))[inverse] < SHARED
    every, item, at = every[kept], item[kept], at[kept]
    sizes = np.array([len(item) for item in items], np.int64)
    base = np.cumsum(sizes) - sizes
    covered = np.zeros(int(sizes.sum()), bool)
    for k in range(RUN):
        covered[base[item] + at + k] = True
    length = np.bincount(np.repeat(np.arange(len(items)), sizes), covered, minlength=len(items)).astype(np.int64)
    return every, item, at, length
