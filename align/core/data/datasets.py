"""The data sets of a stage: rows read, split, checked and tokenised, in parallel and cached by content.

Whatever could be wrong with them is found before the model is loaded: an unusable row, a template that loses text.

record -> rendered and tokenised sequences -> checks -> truncation -> ``Example``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from numpy.typing import NDArray

from align.core.data.batched_rendering import Steps, run_together
from align.core.data.chat_template import tokenizing
from align.core.data.encode import Encoder, UnusableRow
from align.core.data.examples import MESSAGE_WEIGHT, Example, Examples, Store, TokenSequence, to_record_batch
from align.core.data.lint.duplicates import compare_splits
from align.core.data.mixture import RowFinding, Window, load_records, stream_records
from align.core.data.template_checks import (
    CATALOGUE,
    LEFT_OUT,
    Note,
    Tally,
    TemplateFinding,
    TokenizationSettings,
    UncutSequence,
    examine,
    merge_findings,
    stop_on_errors,
)
from align.core.util.atomic_files import cache_directory, digest, making
from align.core.util.child_processes import ordered_map
from align.core.util.profile import profiled
from align.core.util.progress import Work
from align.schemas.errors import AlignError
from align.schemas.records import Content, Record
from align.schemas.run import Data, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.core.algorithm.contract import Algorithm

# One record to examples: rendered, checked, truncated.


def make_examples(record: Record, encoder: Encoder, settings: TokenizationSettings) -> tuple[list[Example], list[Note]]:
    """Return the examples of one record (none where it is unusable, several where it is split), and the notes on it."""
    (found,) = make_all([record], encoder, settings)
    return found


def make_all(
    records: Sequence[Record], encoder: Encoder, settings: TokenizationSettings
) -> list[tuple[list[Example], list[Note]]]:
    """Return what ``make_examples`` returns for each record; their texts are rendered together."""
    return run_together([_making(record, encoder, settings) for record in records])


def _making(
    record: Record, encoder: Encoder, settings: TokenizationSettings
) -> Steps[tuple[list[Example], list[Note]]]:
    """Do what ``make_examples`` does, in steps."""
    try:
        made, notes = yield from tokenizing(record, encoder, settings)
    except UnusableRow as refusal:
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
        made = [part for example in made for part in _truncate(example, settings)]
    columns: dict[str, float] = {}
    if record.kind == "preference":
        columns["margin"] = float(record.margin or 0.0)
    elif record.kind == "unpaired":
        columns["label"] = float(bool(record.label))
    return [
        Example(
            record.source,
            tuple(TokenSequence(d.role, d.ids, d.scored, token_data=_token_data(d)) for d in part),
            columns,
        )
        for part in made
    ], notes


def _token_data(draft: UncutSequence) -> dict[str, NDArray[np.float32]]:
    """Return the weights of the scored tokens, if they are not all 1."""
    return {} if draft.weights is None else {MESSAGE_WEIGHT: draft.weights[draft.scored]}


def _truncate(made: list[UncutSequence], settings: TokenizationSettings) -> list[list[UncutSequence]]:
    """Return the parts of an example that truncation leaves; each of their sequences has a scored token."""
    most = settings.max_length
    if all(len(draft.ids) <= most for draft in made):
        return [made]
    parts: list[list[UncutSequence]] = []
    if settings.truncation == "error":  # the run file accepts it, or the run is about to stop
        parts = [made]
    elif settings.truncation == "keep_start":
        parts = [[_piece(d, 0, most) for d in made]]
    elif settings.truncation == "keep_end":
        parts = [[_piece(d, max(0, len(d.ids) - most), len(d.ids)) for d in made]]
    elif settings.truncation == "split":
        # Blocks overlap by one token, since nothing predicts, and so scores, the first token of a block.
        step = max(1, most - 1)
        parts = [[_piece(d, i, i + most)] for d in made for i in range(0, len(d.ids) - 1, step)]
    return [part for part in parts if all(d.scored.any() or d.role == "prompt" for d in part)]


def _piece(draft: UncutSequence, start: int, stop: int) -> UncutSequence:
    scored = draft.scored[start:stop].copy()
    scored[:1] = False
    weights = None if draft.weights is None else draft.weights[start:stop]
    return draft._replace(ids=draft.ids[start:stop], scored=scored, weights=weights)


def tokenize_chunk(
    state: tuple[Encoder, TokenizationSettings], rows: tuple[Sequence[Record], Sequence[int]]
) -> tuple[pa.RecordBatch, Tally]:
    """Return the examples of some records with the index of each one's source, and the notes; runs in any process."""
    made, which, tally = list[Example](), list[int](), Tally()
    records, sources = rows
    encoder, settings = state
    for start in range(0, len(records), TOGETHER):
        block = records[start : start + TOGETHER]
        results = make_all(block, encoder, settings)
        for record, source, (found, notes) in zip(block, sources[start:], results, strict=False):
            tally.add(record.source, notes, left_out=not found)
            made += found
            which += [source] * len(found)
    return to_record_batch(made, which), tally


# A map over processes that keeps the order, holds little in memory and leaves no orphan.


log = logging.getLogger(__name__)

VERSION = 2
"""Increased when the same record gives other tokens than before: caches of another version are not read."""

CHUNK_ROWS, CHUNK_CHARACTERS = 512, 1_000_000
"""Most rows and most characters that a worker is given at a time, whichever is reached first."""

TOGETHER = 64
"""Rows that are rendered and encoded together: their encodings are in memory at once, some 150 bytes a character."""

WORTH_PROCESSES = 4_000_000
"""Characters from which starting worker processes, some two seconds, saves time."""


@dataclass(frozen=True)
class TokenizedData:
    """Examples ready for the step plan, and the findings of the template doctor."""

    examples: Store
    findings: list[TemplateFinding]


def tokenize_records(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    algorithm: Algorithm,
    data: Data,
    sources: Sequence[int] | NDArray[np.int32] | None = None,
    weights: Sequence[float] = (1.0,),
    cache: Path | None = None,
    progress: bool | None = None,
) -> TokenizedData:
    """Make the examples that ``algorithm`` learns from.

    sources: [N] the index of each record's source in the mixture (None: all from one). cache: a directory where the
    result is stored under a hash of records, tokenizer, template and settings, and memory-mapped; without it the result
    is in memory. The result does not depend on the number of processes.

    Raises AlignError with every finding that is an error and not in ``data.allow``, and where no row is left.
    """
    settings, encoder = TokenizationSettings.of(algorithm, data), Encoder(tokenizer)
    settings.check(encoder)
    which = np.zeros(len(records), np.int32) if sources is None else np.asarray(sources, np.int32)
    name, content_hash = fingerprints(records, encoder, settings, which, weights)

    def make() -> TokenizedData:
        workers = data.dataset_num_proc or len(os.sched_getaffinity(0))
        tally, findings = Tally(), list[TemplateFinding]()
        batches = _batches(records, which, encoder, settings, workers, progress, tally)

        def finish_findings() -> list[dict[str, Any]]:
            findings.extend(tally.findings(settings, encoder))
            stop_on_errors(findings)
            return [finding.dump() for finding in findings]

        if cache is not None:
            store = Store.write(cache, name, weights, batches, finish_findings, content_hash)
        else:
            store = Store(list(batches), name, weights, content_hash)
            finish_findings()
        return TokenizedData(store, findings)

    done = None if cache is None else _cached(cache, name)
    if done is None:
        with nullcontext(False) if cache is None else making(cache / name) as waited:
            # After a wait another process has made them.
            done = _cached(cache, name) if cache is not None and waited else None
            done = done or make()
    if not len(done.examples):
        raise AlignError(
            "no row is left to learn from", "give more rows, or accept less: data.truncation_mode, data.allow"
        )
    return done


def fingerprints(
    records: Sequence[Record],
    encoder: Encoder,
    settings: TokenizationSettings,
    sources: NDArray[np.int32],
    weights: Sequence[float],
) -> tuple[str, str]:
    """Return two hashes over everything that the examples depend on: with the names of the rows, and without.

    The first is the key in the cache, because stored examples hold their rows' names; the second stays the same when
    the files are moved, so a run can be resumed.
    """
    settled = dataclasses.asdict(settings)
    settled |= {name: sorted(settled[name]) for name in ("allow", "special_tokens")}
    versions = [VERSION, tokenizers.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps([versions, encoder.fingerprint, settled, list(weights)]).encode())
    digest.update(sources.tobytes())
    names = hashlib.sha256()
    for r in records:
        contents = [r.kind, r.text, r.prompt, r.completion, r.chosen, r.rejected, r.label, r.margin, r.tools]
        digest.update(json.dumps([*contents, dict(r.chat_template_kwargs)], default=repr).encode())
        names.update(json.dumps(r.source).encode())
    content_hash = digest.hexdigest()
    names.update(content_hash.encode())
    return names.hexdigest(), content_hash


def _cached(cache: Path, name: str) -> TokenizedData | None:
    """Return the result of an earlier call from the cache, or None; damaged files count as none."""
    try:
        found = Store.open(cache, name)
    except AlignError as error:
        log.warning("%s; tokenising again", error)
        return None
    if found is None:
        return None
    store, notes = found
    return TokenizedData(store, [TemplateFinding(**note | {"rows": tuple(note["rows"])}) for note in notes])


def _batches(
    records: Sequence[Record],
    which: NDArray[np.int32],
    encoder: Encoder,
    settings: TokenizationSettings,
    workers: int,
    progress: bool | None,
    tally: Tally,
) -> Iterator[pa.RecordBatch]:
    """Yield record batches in the order of the records; notes are added to ``tally`` in the same order."""
    sizes = [_characters(record) for record in records]
    chunks = list(_chunks(sizes))
    if workers == 1 or sum(sizes) < WORTH_PROCESSES:
        workers = 0
    items = ((records[chunk.start : chunk.stop], which[chunk.start : chunk.stop].tolist()) for chunk in chunks)
    with Work("tokenising rows", len(records), shown=progress) as work:
        results = ordered_map(tokenize_chunk, (encoder, settings), items, workers)
        for chunk, (batch, noticed) in zip(chunks, results, strict=True):
            tally.merge(noticed)
            yield batch
            work.advance(len(chunk))


def _chunks(sizes: Sequence[int]) -> Iterator[range]:
    """Yield consecutive ranges of rows, whose sizes depend on nothing but the rows."""
    start = held = 0
    for i, size in enumerate(sizes):
        if i - start == CHUNK_ROWS or (i > start and held + size > CHUNK_CHARACTERS):
            yield range(start, i)
            start, held = i, 0
        held += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _characters(record: Record) -> int:
    """Return roughly the number of characters in a record, to divide the work by."""
    fields = (record.text, record.prompt, record.completion, record.chosen, record.rejected)
    return sum(_content_characters(content) for content in fields if content)


def _content_characters(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(str(message.get("content"))) for message in content)


# --- data sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """Held-out examples; those of unnamed sources share the name None."""

    name: str | None
    examples: Examples


@dataclass(frozen=True, slots=True)
class Datasets:
    """A stage's tokenised data, ready for the step plan; of a stream ``train`` is the first window."""

    train: Examples
    held_out: list[HeldOutSet]
    findings: list[TemplateFinding | RowFinding]
    bad_rows: dict[str, int]
    rows: Mapping[str, Record]
    """The rows of prompts, held-out ones too, by source; of other kinds none."""
    held_out_rows: Mapping[str | None, Sequence[Record]]
    """The rows of each held-out set by its name, whatever their kind."""
    content_hash: str
    """Hash of the content of all these rows, in their order; paths do not enter it."""


class DatasetBuilder:
    """A reader of a stage's data. Raises AlignError with every row named that must not be trained on.

    Several ranks may call it at once: all read the rows, one tokenises, and the others read its result from the cache.
    """

    def __init__(
        self,
        stage: Stage,
        tokenizer: PreTrainedTokenizerBase,
        algorithm: Algorithm,
        report: Path | None,
        progress: bool | None = None,
    ) -> None:
        self.stage, self.tokenizer, self.algorithm = stage, tokenizer, algorithm
        self.report, self.progress = report, progress
        self.cache = cache_directory()
        self.cache.mkdir(parents=True, exist_ok=True)

    @profiled("data")
    def build(self) -> Datasets:
        """Read, split, check and tokenise."""
        data = self.stage.data
        records = load_records(data, self.algorithm.learns_from, self.report, self.progress, compare_splits)
        if data.stream:
            first = next(self.windows(None))
            train = self._tokenise(first.records)
        else:
            train = self._tokenise(records.train, records.train_sources, records.weights)
        names = [records.validation_names[source] for source in records.validation_sources]
        held_out_rows = {
            name: [r for r, own in zip(records.validation, names, strict=True) if own == name]
            for name in dict.fromkeys(names)
        }
        held_out = {name: self._tokenise(own) for name, own in held_out_rows.items()}
        rows = _by_source([r for r in (*records.train, *records.validation) if r.kind == "prompt"])
        held_out_hashes = [[name, done.examples.content_hash] for name, done in held_out.items()]
        columns = [dict(row.columns) for row in rows.values()]  # rewards read them, and no token shows them
        return Datasets(
            train.examples,
            [HeldOutSet(name, done.examples) for name, done in held_out.items()],
            [
                *records.findings,
                *merge_findings(finding for done in (train, *held_out.values()) for finding in done.findings),
            ],
            dict(records.bad.counts),
            rows,
            held_out_rows,
            digest([train.examples.content_hash, held_out_hashes, columns]),
        )

    def windows(self, places: Sequence[Sequence[int]] | None) -> Iterator[Window]:
        """Yield a stream's windows of rows, from given places on."""
        return stream_records(self.stage.data, self.algorithm.learns_from, places, self.report)

    def window(self, window: Window) -> Examples:
        """Tokenise one window; it is not cached, as a stream is read once."""
        return self._tokenise(window.records, cached=False).examples

    def _tokenise(
        self,
        records: Sequence[Record],
        sources: NDArray[np.int32] | None = None,
        weights: Sequence[float] = (1.0,),
        cached: bool = True,
    ) -> TokenizedData:
        cache = self.cache if cached else None
        return tokenize_records(
            records, self.tokenizer, self.algorithm, self.stage.data, sources, weights, cache, self.progress
        )


def _by_source(records: Sequence[Record]) -> dict[str, Record]:
    """Return rows by source. Raises AlignError if two different rows share one: completions would be scored wrongly."""
    rows: dict[str, Record] = {}
    for record in records:
        if rows.setdefault(record.source, record) != record:
            raise AlignError(
                "is read twice, and not alike", "name each file once, or make two files of it", where=record.source
            )
    return rows
