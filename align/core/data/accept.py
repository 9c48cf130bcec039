"""Check rows before they are written, by reading and tokenising them as the next stage will.

Every stage that makes rows checks them here, so that writing and reading share one definition of a good row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from align.core.data.encode import Encoder
from align.core.data.findings import CATALOGUE
from align.core.data.formats import Format
from align.core.data.prepare import examples_of
from align.core.data.row_errors import RowError
from align.core.data.rows import fitting
from align.core.data.template_checks import Note, Settings
from align.core.plugin_system.registry import registry
from align.schemas.errors import AlignError

ANY = Settings((), scores_prompt=False, reward=False, max_length=2**31, truncation="error", allow=frozenset())
"""Settings for rows whose reader is not known: every fault but length counts."""


@dataclass(frozen=True)
class Acceptance:
    """The check of a row before it is written. encoder: of the tokenizer that will read it."""

    encoder: Encoder
    settings: Settings = ANY
    formats: list[Format] = field(
        default_factory=lambda: [known() for known in registry.working("format").values()], repr=False
    )

    def fault(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with a row, starting with the kind of fault; "" for a good row."""
        try:
            record = fitting(self.formats, row)[0].convert(row, "row")
            examples, notes = examples_of(record, self.encoder, replace(self.settings, learns_from=(record.kind,)))
        except RowError as error:
            return f"{error.kind}: {error.field} {error.what}"
        except AlignError as error:
            return "; ".join(problem.what for problem in error.problems)
        for note in notes:
            if self._stops(note):
                detail = f" ({note.detail})" if note.detail else ""
                return f"{note.finding}: {CATALOGUE[note.finding].what}{detail}"
        return "" if examples else "empty: nothing in it is learned from"

    def _stops(self, note: Note) -> bool:
        if note.finding == "truncation" and self.settings.truncation != "error":
            return False
        return CATALOGUE[note.finding].level == "error" and note.finding not in self.settings.allow
