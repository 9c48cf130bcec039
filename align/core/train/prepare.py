"""From a stage's data settings to tokenised examples, with everything that could be wrong found first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from align.core.algorithm import Algorithm
from align.core.data.doctor import Finding
from align.core.data.examples import Examples
from align.core.data.sources import load_records
from align.core.data.tokenise import tokenise
from align.core.train.rundir import cache_directory
from align.schemas.records import Record
from align.schemas.run import Data, Stage


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """Held-out examples; those of unnamed sources share the name None."""

    name: str | None
    examples: Examples


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage's data, ready for the step plan."""

    train: Examples
    held_out: list[HeldOutSet]
    findings: list[Finding]
    bad_rows: dict[str, int]


def prepare(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, algorithm: Algorithm, report: Path, progress: bool
) -> Prepared:
    """Read, split, check and tokenise; raises AlignError with every row named that must not be trained on.

    Several ranks may come at once: one works, the others find its cache.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    findings: list[Finding] = []
    held_out: list[HeldOutSet] = []

    def held(name: str | None, data: Data, records: Sequence[Record]) -> None:
        done = tokenise(records, tokenizer, algorithm, data, cache=cache, progress=progress)
        findings.extend(done.findings)
        held_out.append(HeldOutSet(name, done.examples))

    with FileLock(cache / ".lock"):
        records = load_records(stage.data, algorithm.learns_from, report, progress)
        train = tokenise(
            records.train, tokenizer, algorithm, stage.data, records.train_sources, records.weights, cache, progress
        )
        findings.extend(train.findings)
        if stage.data.validation is None and records.validation:
            held(None, stage.data, records.validation)
        for name in dict.fromkeys(source.name for source in stage.data.validation or ()):
            sources = [s for s in stage.data.validation or () if s.name == name]
            only = stage.data.model_copy(update={"train": sources, "validation": None, "validation_fraction": 0.0})
            held(name, only, load_records(only, algorithm.learns_from, report, progress).train)
    return Prepared(train.examples, held_out, findings, dict(records.bad.counts))
