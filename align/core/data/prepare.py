"""One record to finished examples: rendered, examined, cut to length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.core.data.chat_template import drafts
from align.core.data.encode import Encoder
from align.core.data.examples import MESSAGE_WEIGHT, Example, TokenSequence
from align.core.data.findings import CATALOGUE, LEFT_OUT
from align.core.data.guard import Refusal
from align.core.data.store import to_batch
from align.core.data.template_checks import Draft, Note, Settings, Tally, examine
from align.schemas.records import Record


def examples_of(record: Record, encoder: Encoder, settings: Settings) -> tuple[list[Example], list[Note]]:
    """The examples of one record (none where it cannot be learned from, several where it is split), and its notes."""
    try:
        made, notes = drafts(record, encoder, settings)
    except Refusal as refusal:
        return [], [Note(refusal.finding, refusal.detail)]
    except RecursionError:
        return [], [Note("template-failed", "nested too deep")]
    notes += [note for example in made for draft in example for note in examine(draft, encoder, settings)]
    for example in made:
        if len(example) == 2 and np.array_equal(example[0].ids, example[1].ids):
            notes.append(Note("identical-pair"))
    if any(CATALOGUE[note.finding].accepted == LEFT_OUT for note in notes):
        return [], notes
    over = sum(max(0, len(draft.ids) - settings.max_length) for example in made for draft in example)
    if over:
        longest = max(len(draft.ids) for example in made for draft in example)
        notes.append(Note("truncation", f"{longest:,} tokens", over))
        made = [part for example in made for part in _cut(example, settings)]
    columns: dict[str, float] = {}
    if record.kind == "preference":
        columns["margin"] = float(record.margin or 0.0)
    elif record.kind == "unpaired":
        columns["label"] = float(bool(record.label))
    return [
        Example(
            record.source,
            tuple(TokenSequence(d.role, d.ids, d.scored, along=_along(d)) for d in part),
            columns,
        )
        for part in made
    ], notes


def _along(draft: Draft) -> dict[str, NDArray[np.float32]]:
    """Return the weights of the scored tokens, if they are not all 1."""
    return {} if draft.weights is None else {MESSAGE_WEIGHT: draft.weights[draft.scored]}


def _cut(made: list[Draft], settings: Settings) -> list[list[Draft]]:
    """What truncation leaves of an example: parts in which each sequence has something scored."""
    most = settings.max_length
    if all(len(draft.ids) <= most for draft in made):
        return [made]
    parts: list[list[Draft]] = []
    if settings.truncation == "error":  # the run file accepts it, or the run is about to stop
        parts = [made]
    elif settings.truncation == "keep_start":
        parts = [[_piece(d, 0, most) for d in made]]
    elif settings.truncation == "keep_end":
        parts = [[_piece(d, max(0, len(d.ids) - most), len(d.ids)) for d in made]]
    elif settings.truncation == "split":  # a block begins with the last token of the one before, so none goes unscored
        parts = [[_piece(d, i, i + most)] for d in made for i in range(0, len(d.ids) - 1, max(1, most - 1))]
    return [part for part in parts if all(d.scored.any() or d.role == "prompt" for d in part)]


def _piece(draft: Draft, start: int, stop: int) -> Draft:
    scored = draft.scored[start:stop].copy()
    scored[:1] = False
    weights = None if draft.weights is None else draft.weights[start:stop]
    return draft._replace(ids=draft.ids[start:stop], scored=scored, weights=weights)


def prepare(
    state: tuple[Encoder, Settings], rows: tuple[Sequence[Record], Sequence[int]]
) -> tuple[pa.RecordBatch, Tally]:
    """The examples of some records with the mixture's source of each, and what was noticed; runs in any process."""
    made, which, tally = list[Example](), list[int](), Tally()
    for record, source in zip(*rows, strict=True):
        found, notes = examples_of(record, *state)
        tally.add(record.source, notes, left_out=not found)
        made += found
        which += [source] * len(found)
    return to_batch(made, which), tally
