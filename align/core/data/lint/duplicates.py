"""Find rows that repeat others: exact and near duplicates, contradictory answers, held-out rows in training."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.core.data.lint.finding import Lint, LintFinding, Places, ThinnedDict, finding
from align.core.data.lint.row_view import RowView, digest, windows
from align.core.data.mixture import Split
from align.schemas.records import Record

RUN = 3
"""Consecutive words that are compared as one unit (3-grams)."""
BANDS, BAND = 25, 5
"""Rows whose hashes agree in one band are compared: of pairs that are 70 % alike 99 % are, of pairs 40 % alike 23 %.

    P(compared) = 1 - (1 - J^5)^25,   J = |A & B| / |A u B|    (Leskovec et al., Mining of Massive Datasets, 3.4)
"""
THRESHOLD = 0.7
"""From this share of equal hashes two rows are near duplicates. The share estimates J with standard error
sqrt(J (1 - J) / 125) = 0.04 (Broder 1997)."""
MOST = 200_000
"""Different rows kept for comparing, some 700 bytes each; of more, a random sample."""
SHORT = 5
"""Words up to which an answer is a label or a value, so that two of them contradict each other."""


class ExactDuplicates(Lint):
    """Rows with the same digest."""

    def __init__(self) -> None:
        self.digests = array("Q")

    def see(self, row: RowView) -> None:
        """Keep the digest of the row."""
        self.digests.append(row.digest)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield a finding for the rows whose digest an earlier row has."""
        if len(rows := repeated(np.frombuffer(self.digests, np.uint64))):
            yield finding("exact-duplicates", places, rows)


def repeated(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the indices of digests that occurred before, in order."""
    first = np.unique(digests, return_index=True)[1] if len(digests) else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(digests)), first)


class NearDuplicates(Lint):
    """Different rows with mostly the same runs of three words, found by MinHash and banding (LSH)."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._make: Any = MinHash
        self._permutations = MinHash(BANDS * BAND, scheme="affine32").permutations
        self._seen = ThinnedDict[tuple[int, NDArray[np.uint32]]](MOST)

    def see(self, row: RowView) -> None:
        """Keep the MinHash values of a row unless an equal row was seen."""
        if not self._seen.wants(row.digest) or row.digest in self._seen.held or len(row.words) < RUN:
            return
        runs = np.unique(windows(row.hashes, RUN) >> np.uint64(32)).tolist()
        made = self._make(BANDS * BAND, scheme="affine32", hashfunc=int, permutations=self._permutations)
        for start in range(0, len(runs), 10_000):  # in parts, because each hash takes half a KB while it is permuted
            made.update_batch(runs[start : start + 10_000])
        self._seen.set(row.digest, (row.number, made.hashvalues))

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield a finding for all rows but the first of each group of near duplicates."""
        kept = [self._seen.held[key] for key in sorted(self._seen.held)]
        if len(kept) < 2:
            return
        numbers = np.array([number for number, _ in kept])
        groups = group_near_duplicates(np.vstack([signature for _, signature in kept]))
        order = np.lexsort((numbers, groups))
        later = np.append(False, groups[order][1:] == groups[order][:-1])
        if later.any():
            share = self._seen.share
            looked = f"{len(kept):,} different rows compared" + f", one in {1 / share:.0f}" * (share < 1)
            rows = numbers[order][later].tolist()
            yield finding("near-duplicates", places, rows, of=len(kept) if share < 1 else None, threshold=THRESHOLD,
                          looked_at=looked)  # fmt: skip


def group_near_duplicates(signatures: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Return the group number [N] of each row from MinHash values [N, 125]; a row like no other has its own group.

    In each band's bucket every row is compared with the first and the next one only, so the work stays linear where
    thousands share a bucket. Groups are the connected components of the similar pairs.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = list[NDArray[np.int64]]()
    for band in range(BANDS):
        columns = np.ascontiguousarray(signatures[:, band * BAND : (band + 1) * BAND])
        bucket = np.unique(columns.view(np.dtype((np.void, columns.itemsize * BAND))).ravel(), return_inverse=True)[1]
        order = np.argsort(bucket, kind="stable")
        start = np.flatnonzero(np.append(True, bucket[order][1:] != bucket[order][:-1]))
        first = np.repeat(order[start], np.diff(np.append(start, len(order))))
        follows = order[1:][bucket[order][1:] == bucket[order][:-1]]
        before = order[:-1][bucket[order][1:] == bucket[order][:-1]]
        pairs += [np.stack([before, follows]), np.stack([first, order])[:, first != order]]
    one, other = np.unique(np.sort(np.hstack(pairs), axis=0), axis=1) if pairs else np.empty((2, 0), np.int64)
    alike = np.empty(len(one), bool)
    for at in range(0, len(one), 50_000):
        part = slice(at, at + 50_000)
        alike[part] = (signatures[one[part]] == signatures[other[part]]).mean(axis=1) >= THRESHOLD
    one, other = one[alike], other[alike]
    count = len(signatures)
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    groups: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return groups


class RepeatedPrompts(Lint):
    """Prompts that occur again with another answer, or with chosen and rejected exchanged."""

    def __init__(self) -> None:
        self._rows, self._prompts, self._answers, self._short = array("Q"), array("Q"), array("Q"), array("B")
        self._pairs, self._wins, self._losses = array("Q"), array("Q"), array("Q")

    def see(self, row: RowView) -> None:
        """Keep digests of the prompt and its answers."""
        answers = row.normal_answers or (row.solution,) * (row.solution != "")
        if not row.normal_prompt or not answers:
            return
        if len(answers) == 2:
            chosen, rejected = (digest(row.normal_prompt, answer) for answer in answers)
            self._wins.append(chosen ^ _half(rejected))
            self._losses.append(rejected ^ _half(chosen))
            self._pairs.append(row.number)
        elif row.record.kind != "unpaired":
            self._rows.append(row.number)
            self._prompts.append(digest(row.normal_prompt))
            self._answers.append(digest(answers[0]))
            self._short.append(len(answers[0].split()) <= SHORT)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield findings for contradictions, and for repeated prompts that are none."""
        if self._wins:
            rows = np.frombuffer(self._pairs, np.uint64)
            turned = np.isin(np.frombuffer(self._wins, np.uint64), np.frombuffer(self._losses, np.uint64))
            if turned.any():
                yield finding("contradictory-pairs", places, rows[turned].tolist(), of=len(rows), unit="pairs")
        if not self._prompts:
            return
        rows = np.frombuffer(self._rows, np.uint64)
        prompts, answers = np.frombuffer(self._prompts, np.uint64), np.frombuffer(self._answers, np.uint64)
        short = np.frombuffer(self._short, np.uint8).astype(bool)
        against = short & _several(prompts, answers, short)
        if against.any():
            yield finding("contradictory-answers", places, rows[against].tolist())
        different = np.setdiff1d(np.arange(len(rows)), repeated(prompts ^ _halves(answers)))
        rest = different[~against[different]]
        again = np.isin(prompts[rest], prompts[against])
        again[repeated(prompts[rest])] = True
        if again.any():
            yield finding("repeated-prompts", places, rows[rest[again]].tolist())


def _several(prompts: NDArray[np.uint64], answers: NDArray[np.uint64], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each row [N] True if its prompt has several different answers among the rows counted."""
    pairs = np.unique(np.stack([prompts[counted], answers[counted]]), axis=1)
    distinct, count = np.unique(pairs[0], return_counts=True)
    return np.isin(prompts, distinct[count > 1])


def _half(value: int) -> int:
    """Return a hash with its halves exchanged, so that (a, b) and (b, a) combine to different values."""
    return (value >> 32 | value << 32) & 0xFFFFFFFFFFFFFFFF


def _halves(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (values >> np.uint64(32)) | (values << np.uint64(32))


# Checked in every run, because the digests are there anyway.


def compare_splits(train: Split, held_out: Split) -> list[LintFinding]:
    """Return findings for rows that occur twice in training, and for held-out rows that are trained on as well.

    Rows are compared by 64-bit digests of their content, to the character.
    """
    trained, measured = (np.frombuffer(split.digests, np.uint64) for split in (train, held_out))
    findings = list[LintFinding]()
    again = repeated(trained)
    if len(again):
        findings.append(finding("exact-duplicates", _places(train.records), again.tolist()))
    leaked = np.flatnonzero(np.isin(measured, trained))
    if len(leaked):
        findings.append(finding("held-out-overlap", _places(held_out.records), leaked.tolist()))
    return findings


def _places(records: Sequence[Record]) -> Places:
    places = Places()
    for record in records:
        places.add(record.source)
    return places
