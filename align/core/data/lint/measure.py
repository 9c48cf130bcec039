"""What files hold, counted: facts for the form's ``data``, which beat what is claimed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.core.data.lint.finding import LintFinding
from align.core.data.lint.linter import Linter, Looking
from align.core.data.lint.eval_overlap import read_suite
from align.core.data.row_errors import BadRow
from align.core.data.sources import Reading
from align.schemas.errors import AlignError
from align.schemas.run import Source

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
"""Names of files that are pages to read rather than rows to learn from."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One body of data. kind: as the form calls it. facts: of ``DataSet`` and ``Size``, those that are known:

    rows, docs, tokens (with a model's tokenizer only), bytes (of text, in UTF-8), pii, overlaps_evals (where suites
    were given), license, labelled_by. languages: shares of a sample by ISO 639-1 code. bad: rows that cannot be used.
    """

    path: str
    kind: Held
    facts: dict[str, Any]
    languages: dict[str, float]
    findings: tuple[LintFinding, ...] = ()
    bad: int = 0


def measure(path: str, *, against: Sequence[str] = (), model: str | None = None, format: str = "auto") -> Measured:
    """Count and check what is at ``path``: a data file, a directory of them, a hub id, or pages (``.md``, ``.pdf``).

    against: files of evaluations, to say whether rows are in them. model: a directory or hub id, for its tokenizer.
    Raises AlignError where nothing can be read.
    """
    if pages := pages_at(path):
        size = sum(page.stat().st_size for page in pages)
        return Measured(path, "documents", {"docs": len(pages), "bytes": size}, {})
    suites = [read_suite(file) for file in against]
    linter, bad = Linter(Looking(suites, _counter(model) if model else None)), 0
    for item in Reading(Source(path=path, format=format)).rows():
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
        "tokens": linter.measure.tokens,
        "bytes": linter.measure.bytes,
        "pii": "pii" in ids,
        "overlaps_evals": bool(ids & {"eval-overlap-exact", "eval-overlap-ngram"}) if against else None,
        "license": licences[0][0] if len(licences) == 1 else None,
        "labelled_by": judges[0][0] if len(judges) == 1 else None,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return Measured(path, kind, known, linter.languages.shares, tuple(found), bad)


def pages_at(path: str) -> list[Path]:
    """The page at a path, or those of a directory that holds hardly anything else; none where there are rows."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place] if place.suffix.lower() in PAGES else []
    if not place.is_dir():
        return []
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    pages = [file for file in files if file.suffix.lower() in PAGES]
    return pages if len(pages) > len(files) / 2 else []


def _counter(model: str) -> Any:
    from align.core.data.lint.tokens import counter

    return counter(model)
