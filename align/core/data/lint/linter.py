"""All lints over one set of rows, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from align.core.data.lint.base import Lint
from align.core.data.lint.catalogue import CATALOGUE
from align.core.data.lint.corpus import Corpus
from align.core.data.lint.finding import RANK, LintFinding, Places, finding
from align.core.data.lint.language import Languages
from align.core.data.lint.text_statistics import Count, Lengths, Measure
from align.core.data.lint.row_flags import Marks, Turns
from align.core.data.lint.provenance import Labels, Origin
from align.core.data.lint.eval_overlap import Overlap, Suite
from align.core.data.lint.feedback import Pairs
from align.core.data.lint.duplicates import Exact, Near, SamePrompt
from align.core.data.lint.sensitive import Sensitive
from align.core.data.lint.row_view import View
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.records import Kind, Record

FLOORS: Mapping[str, int] = {"completion": 10, "conversation": 10, "preference": 50, "unpaired": 100, "prompt": 100}
"""Rows under which a kind has no known effect: OpenAI's least for fine-tuning, Azure's for preferences, TRL's for KTO;
of plain text tokens count, not rows."""


@dataclass(frozen=True, slots=True)
class Looking:
    """What rows are held against. skip: ids that are not reported."""

    suites: Sequence[Suite] = ()
    count: Count | None = None
    max_length: int | None = None
    skip: Collection[str] = ()

    def __post_init__(self) -> None:
        """Raises AlignError where ``skip`` names what is no lint."""
        problems = [
            Problem("--skip", f"{id!r} is no data lint", did_you_mean(id, CATALOGUE))
            for id in self.skip
            if id not in CATALOGUE
        ]
        if problems:
            raise AlignError.gather(problems)


class Linter:
    """Give it every row with ``see``, then ask for ``findings``; memory grows by some 150 bytes a row."""

    def __init__(self, looking: Looking | None = None) -> None:
        self.looking = looking or Looking()
        self.places, self.kinds = Places(), Counter[str]()
        self.measure = Measure(self.looking.count, self.looking.max_length)
        self.languages, self.origin, self.sensitive = Languages(), Origin(), Sensitive()
        lints: list[Lint] = [Exact(), Near(), SamePrompt(), self.sensitive, Marks(), Turns(), Labels(), Pairs()]
        against = [Overlap(self.looking.suites)] if self.looking.suites else []
        self.lints: list[Lint] = [*against, *lints, Corpus(), self.measure, self.languages, self.origin]

    def see(self, record: Record) -> None:
        """One row."""
        row = View(self.places.add(record.source), record)
        self.kinds["conversation" if row.turns else record.kind] += 1
        for lint in self.lints:
            lint.see(row)

    @property
    def kind(self) -> Kind | str:
        """The kind of most rows; ``conversation`` for text that is messages, "" without rows."""
        return max(sorted(self.kinds), key=self.kinds.__getitem__, default="")

    @property
    def lengths(self) -> list[Lengths]:
        """Of all rows, by unit and part."""
        return self.measure.lengths

    def findings(self) -> list[LintFinding]:
        """All that were found and are not to be skipped, the worst first."""
        found = [one for lint in self.lints for one in lint.findings(self.places)] if len(self.places) else []
        floor = FLOORS.get(self.kind, 0)
        if 0 < len(self.places) < floor:
            found.append(finding("few-rows", self.places, count=len(self.places), floor=floor))
        kept = [one for one in found if one.id not in self.looking.skip]
        return sorted(kept, key=lambda one: -RANK[one.level])


def lint(records: Iterable[Record], looking: Looking | None = None) -> list[LintFinding]:
    """What is doubtful about rows that could be read, the worst first; the same in whatever order they come."""
    linter = Linter(looking)
    for record in records:
        linter.see(record)
    return linter.findings()
