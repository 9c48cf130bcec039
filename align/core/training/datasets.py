"""From a stage's data settings to tokenised examples, with everything that could be wrong found first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from align.core.algorithm.base import Algorithm
from align.core.data import step_plan
from align.core.data.examples import Examples
from align.core.data.lint.duplicates import compare_splits
from align.core.data.mixture import RowFinding, Window, load_records, stream_records
from align.core.data.template_checks import TemplateFinding, merge_findings
from align.core.data.tokenize import TokenizedData, tokenize_records
from align.core.engine.steps import MicroBatcher, StepBatch, StepLoader
from align.core.util.atomic_files import cache_directory, digest
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Stage, Train


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """Held-out examples; those of unnamed sources share the name None."""

    name: str | None
    examples: Examples


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage's data, ready for the step plan; of a stream ``train`` is the first window."""

    train: Examples
    held_out: list[HeldOutSet]
    findings: list[TemplateFinding | RowFinding]
    bad_rows: dict[str, int]
    rows: Mapping[str, Record]
    """The rows of prompts, held-out ones too, by source; of other kinds none."""
    content_hash: str
    """Hash of the content of all these rows, in their order; paths do not enter it."""


class Preparation:
    """From a stage's settings to examples; raises AlignError with every row named that must not be trained on.

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

    def prepare(self) -> Prepared:
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
        return Prepared(
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
        """A stream's windows, from given places on."""
        return stream_records(self.stage.data, self.algorithm.learns_from, places, self.report)

    def window(self, window: Window) -> Examples:
        """One of them tokenised; not cached, as a stream is read once."""
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
    """Raises AlignError where two different rows have one name: answers would be scored against the wrong one."""
    rows: dict[str, Record] = {}
    for record in records:
        if rows.setdefault(record.source, record) != record:
            raise AlignError(
                "is read twice, and not alike", "name each file once, or make two files of it", where=record.source
            )
    return rows


# Streamed data: a phase is a window of rows, read and tokenised when its turn comes (continual pre-training).

Places = Sequence[Sequence[int]]


class StreamSteps:
    """Windows of a stream, each one epoch of the step plan; in bounded memory, and resumed at the same row.

    windows:  those from given places on (``align.core.data.mixture.stream_records``).
    tokenise: a window's records as examples.
    """

    evaluate_every: int | None = None

    def __init__(
        self,
        windows: Callable[[Places | None], Iterator[Window]],
        tokenise: Callable[[Window], Examples],
        cutter: MicroBatcher,
        train: Train,
        seed: int,
    ) -> None:
        assert train.max_steps is not None, "a stream without it was refused"
        self.total_steps = train.max_steps
        self._from, self._tokenise, self._cutter = windows, tokenise, cutter
        self._batch_size, self._seed = train.batch_size, seed
        self._ends: list[int] = []  # steps done at the end of each window begun so far
        self._places: list[Places | None] = [None]  # where each of them begins in the sources, then where the next does
        self._windows: Iterator[Window] | None = None

    def loader(self, phase: int, start: int) -> StepLoader:
        """The steps of one window, cut short at ``total_steps``. Windows are asked for in order, the first again."""
        if self._windows is None or phase != len(self._ends):
            self._windows = self._from(self._places[phase])
        window = next(self._windows)
        examples = self._tokenise(window)
        order = step_plan.epoch_order(np.zeros(len(examples), np.int32), (1.0,), self._seed, phase, self._batch_size)
        before = self._ends[phase - 1] if phase else 0
        self._ends[phase:] = [before + len(order)]
        self._places[phase + 1 :] = [[list(place) for place in window.places]]

        def build(index: int) -> StepBatch:
            return self._cutter.step(index, [examples[int(i)] for i in order[index]])

        return StepLoader(build, min(len(order), self.total_steps - before), start)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """(window, step within it)."""
        phase = sum(end <= steps_done for end in self._ends)
        return phase, steps_done - (self._ends[phase - 1] if phase else 0)

    def epochs(self, steps_done: int) -> float:
        """Windows: a stream has no other end to count by."""
        phase, step = self.locate(steps_done)
        begin = self._ends[phase - 1] if phase else 0
        return phase + (step / (self._ends[phase] - begin) if phase < len(self._ends) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Where each window begins and ends."""
        return {"ends": list(self._ends), "places": list(self._places)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, before the first ``loader``."""
        self._ends, self._places, self._windows = list(state["ends"]), list(state["places"]), None
