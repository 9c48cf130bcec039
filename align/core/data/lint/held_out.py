"""What a run looks for by itself, since it costs nothing: rows learned twice, and held-out rows that are learned."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from align.core.data.lint.finding import LintFinding, Places, finding
from align.core.data.lint.duplicates import repeated
from align.schemas.records import Record


def learned_again(
    train: Sequence[Record], train_digests: array[int], held_out: Sequence[Record], held_out_digests: array[int]
) -> list[LintFinding]:
    """Rows whose digests (64 bits over what they teach, to the character) meet."""
    learned, measured = (np.frombuffer(digests, np.uint64) for digests in (train_digests, held_out_digests))
    told = list[LintFinding]()
    if len(again := repeated(learned)):
        told.append(finding("exact-duplicates", _places(train), again.tolist()))
    if len(known := np.flatnonzero(np.isin(measured, learned))):
        told.append(finding("held-out-overlap", _places(held_out), known.tolist()))
    return told


def _places(records: Sequence[Record]) -> Places:
    places = Places()
    for record in records:
        places.add(record.source)
    return places
