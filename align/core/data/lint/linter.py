"""Run all data checks over rows in one pass, for ``align data check`` (``scan_source``) and advice (``measure``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.core.data.formats import KINDS
from align.core.data.lint.duplicates import ExactDuplicates, NearDuplicates, RepeatedPrompts
from align.core.data.lint.eval_overlap import EvalOverlap, Suite, read_suite
from align.core.data.lint.feedback import LabelBalance, PreferencePairs
from align.core.data.lint.finding import CATALOGUE, RANK, Level, Lint, LintFinding, Places, finding
from align.core.data.lint.provenance import ProvenanceColumns
from align.core.data.lint.row_flags import ConversationFlags, RowFlags
from align.core.data.lint.row_view import RowView
from align.core.data.lint.sensitive import SensitiveData
from align.core.data.lint.text_statistics import Count, DocumentQuality, Languages, Lengths, LengthStatistics
from align.core.data.rows import BadRow, BadRows
from align.core.data.sources import Reading
from align.core.util.progress import working
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.records import Kind, Record
from align.schemas.run import Source
from align.schemas.text import visible

FLOORS: Mapping[str, int] = {"completion": 10, "conversation": 10, "preference": 50, "unpaired": 100, "prompt": 100}
"""Rows under which a kind has no known effect: OpenAI's least for fine-tuning, Azure's for preferences, TRL's for KTO;
of plain text tokens count, not rows."""


@dataclass(frozen=True, slots=True)
class LintOptions:
    """The options of a data check. suites: evaluations whose prompts must not be in the rows. count: counts tokens.

    max_length: in tokens. skip: ids of findings that are not reported.
    """

    suites: Sequence[Suite] = ()
    count: Count | None = None
    max_length: int | None = None
    skip: Collection[str] = ()

    def __post_init__(self) -> None:
        """Raise AlignError where ``skip`` names an unknown finding."""
        problems = [
            Problem("--skip", f"{id!r} is no data lint", did_you_mean(id, CATALOGUE))
            for id in self.skip
            if id not in CATALOGUE
        ]
        if problems:
            raise AlignError.gather(problems)


class Linter:
    """All data checks: call ``see`` with every row, then ``findings``. Memory grows by some 150 bytes a row."""

    def __init__(self, options: LintOptions | None = None) -> None:
        self.options = options or LintOptions()
        self.places, self.kinds = Places(), Counter[str]()
        self.measure = LengthStatistics(self.options.count, self.options.max_length)
        self.languages, self.origin, self.sensitive = Languages(), ProvenanceColumns(), SensitiveData()
        lints: list[Lint] = [
            ExactDuplicates(),
            NearDuplicates(),
            RepeatedPrompts(),
            self.sensitive,
            RowFlags(),
            ConversationFlags(),
            LabelBalance(),
            PreferencePairs(),
        ]
        against = [EvalOverlap(self.options.suites)] if self.options.suites else []
        self.lints: list[Lint] = [*against, *lints, DocumentQuality(), self.measure, self.languages, self.origin]

    def see(self, record: Record) -> None:
        """Give one row to every check."""
        row = RowView(self.places.add(record.source), record)
        self.kinds["conversation" if row.turns else record.kind] += 1
        for lint in self.lints:
            lint.see(row)

    @property
    def kind(self) -> Kind | str:
        """The most common kind of row; ``conversation`` for text that is messages, "" without rows."""
        return max(sorted(self.kinds), key=self.kinds.__getitem__, default="")

    @property
    def lengths(self) -> list[Lengths]:
        """The length statistics of all rows, by unit and part."""
        return self.measure.lengths

    def findings(self) -> list[LintFinding]:
        """Return all findings that are not skipped, the worst first."""
        found = [one for lint in self.lints for one in lint.findings(self.places)] if len(self.places) else []
        floor = FLOORS.get(self.kind, 0)
        if 0 < len(self.places) < floor:
            found.append(finding("few-rows", self.places, count=len(self.places), floor=floor))
        kept = [one for one in found if one.id not in self.options.skip]
        return sorted(kept, key=lambda one: -RANK[one.level])


def lint(records: Iterable[Record], options: LintOptions | None = None) -> list[LintFinding]:
    """Return the findings about some records, the worst first; they do not depend on the order of the records."""
    linter = Linter(options)
    for record in records:
        linter.see(record)
    return linter.findings()


# Checking one source row by row, for ``align data check``.


@dataclass(slots=True)
class ScanResult:
    """The result of checking one source.

    form: the form of most rows, in words. rows: the number of good rows. left_out: files of a directory that were not
    read. error: the reason if it could not be read at all. findings: the worst first. languages: shares of a sample.
    """

    path: str
    form: str = ""
    rows: int = 0
    bad: BadRows = field(default_factory=BadRows)
    left_out: list[str] = field(default_factory=list)
    error: str = ""
    findings: list[LintFinding] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    languages: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """True if training on the source would start."""
        return not (self.error or len(self.bad))

    def passes(self, fail_on: Level) -> bool:
        """Return True if the source is clean and no finding is as bad as ``fail_on`` or worse."""
        return self.clean and all(RANK[one.level] < RANK[fail_on] for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "path": self.path,
            "form": self.form,
            "error": self.error,
            "left_out": self.left_out,
            "rows": self.rows,
            "bad": len(self.bad),
            "bad_by_kind": dict(self.bad.counts.most_common()),
            "bad_rows": [asdict(row) for row in self.bad.rows],
            "findings": [one.dump() for one in self.findings],
            "lengths": [one.dump() for one in self.lengths],
            "languages": self.languages,
        }


def scan_source(
    source: Source, kinds: Iterable[Kind] = KINDS, options: LintOptions | None = None, *, progress: bool | None = None
) -> ScanResult:
    """Read a source, count its rows and check the good ones. ``error`` is set if the source cannot be read."""
    found, linter = ScanResult(source.path), Linter(options)
    try:
        reading = Reading(source, kinds)
        found.left_out = reading.left_out
        found.form = str(reading.form or "no row that parses")
        for item in reading.rows(progress=progress):
            if isinstance(item, BadRow):
                found.bad.add(item)
            else:
                found.rows += 1
                linter.see(item.record)
        if found.rows:
            with working(f"comparing the rows of {visible(source.path)}", shown=progress):
                found.findings, found.lengths = linter.findings(), linter.lengths
            found.languages = linter.languages.shares
    except AlignError as error:
        found.error = str(error)
    return found


# Measuring files, as facts for the adviser, which override the claims in a brief.

Held = Literal["corpus", "documents", "sft_pairs", "preference_pairs", "unpaired_feedback", "prompts"]

_KINDS: Mapping[str, Held] = {
    "text": "corpus",
    "conversation": "sft_pairs",
    "completion": "sft_pairs",
    "preference": "preference_pairs",
    "unpaired": "unpaired_feedback",
    "prompt": "prompts",
}
PAGES = frozenset((".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".docx", ".odt", ".tex", ".adoc", ".xml"))
"""Suffixes of files that are documents to read rather than rows to learn from."""


@dataclass(frozen=True, slots=True)
class MeasuredData:
    """The measured facts about one data set. kind: as a brief names it. facts: those of ``DataSet`` and ``Size`` found:

    rows, docs, bytes (of text, in UTF-8), pii, overlaps_evals (where suites
    were given), license, labelled_by. languages: shares of a sample by ISO 639-1 code. bad: rows that cannot be used.
    """

    path: str
    kind: Held
    facts: dict[str, Any]
    languages: dict[str, float]
    findings: tuple[LintFinding, ...] = ()
    bad: int = 0


def measure(path: str, *, against: Sequence[str] = ()) -> MeasuredData:
    """Count and check the data at ``path``: a data file, a directory of them, a hub id, or pages (``.md``, ``.pdf``).

    against: evaluation files, to find rows that are in them too. Raises AlignError where nothing can be read.
    """
    if pages := pages_at(path):
        size = sum(page.stat().st_size for page in pages)
        return MeasuredData(path, "documents", {"docs": len(pages), "bytes": size}, {})
    suites = [read_suite(file) for file in against]
    linter, bad = Linter(LintOptions(suites)), 0
    for item in Reading(Source(path=path)).rows():
        if isinstance(item, BadRow):
            bad += 1
        else:
            linter.see(item.record)
    if not len(linter.places):
        raise AlignError(f"has no row that can be used; {bad:,} cannot", "see `align data check`", where=path)
    found, kind = linter.findings(), _KINDS[linter.kind]
    ids = {one.id for one in found}
    licences, judges = linter.origin.licence.top, linter.origin.judge.top
    facts = {
        "docs" if kind == "corpus" else "rows": len(linter.places),
        "bytes": linter.measure.bytes,
        "pii": "pii" in ids,
        "overlaps_evals": bool(ids & {"eval-overlap-exact", "eval-overlap-ngram"}) if against else None,
        "license": licences[0][0] if len(licences) == 1 else None,
        "labelled_by": judges[0][0] if len(judges) == 1 else None,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return MeasuredData(path, kind, known, linter.languages.shares, tuple(found), bad)


def pages_at(path: str) -> list[Path]:
    """Return the document at a path, or those of a directory that holds mostly documents; none where there are rows."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place] if place.suffix.lower() in PAGES else []
    if not place.is_dir():
        return []
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    pages = [file for file in files if file.suffix.lower() in PAGES]
    return pages if len(pages) > len(files) / 2 else []
