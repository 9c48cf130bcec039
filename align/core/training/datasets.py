"""The data sets of a stage: read, split, checked and tokenised, with everything that could be wrong found first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from align.core.data.datasets import TokenizedData, tokenize_records
from align.core.data.examples import Examples
from align.core.data.lint.duplicates import compare_splits
from align.core.data.mixture import RowFinding, Window, load_records, stream_records
from align.core.data.template_checks import TemplateFinding, merge_findings
from align.core.util.atomic_files import cache_directory, digest
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.core.algorithm.base import Algorithm


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
        held_out = {
            name: self._tokenise([r for r, own in zip(records.validation, names, strict=True) if own == name])
            for name in dict.fromkeys(names)
        }
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
