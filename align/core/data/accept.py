"""Whether a row that is about to be written would be learned from: read and tokenised as the stage after it does.

Whoever makes rows asks here, so that what is written and what is accepted have one definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from align.core.data.doctor import Note, Settings
from align.core.data.encode import Encoder
from align.core.data.faults import RowError
from align.core.data.findings import CATALOGUE
from align.core.data.formats import Format
from align.core.data.prepare import examples_of
from align.core.data.rows import fitting
from align.core.registry import registry
from align.schemas.errors import AlignError

ANY = Settings((), scores_prompt=False, reward=False, max_length=2**31, truncation="error", allow=frozenset())
"""For rows whose reader is not known: whatever is no fault of length."""


@dataclass(frozen=True)
class Acceptance:
    """How rows will be read. encoder: of the tokenizer that they are read with."""

    encoder: Encoder
    settings: Settings = ANY
    formats: list[Format] = field(
        default_factory=lambda: [known() for known in registry.working("format").values()], repr=False
    )

    def fault(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with a row, beginning with the kind of fault; "" for a good one."""
        try:
            record = fitting(self.formats, row)[0].convert(row, "row")
            examples, notes = examples_of(record, self.encoder, replace(self.settings, learns_from=(record.kind,)))
        except RowError as error:
            return f"{error.kind}: {error.field} {error.what}"
        except AlignError as error:
            return "; ".join(problem.what for problem in error.problems)
        for note in notes:
            if self._stops(note):
                return f"{note.finding}: {CATALOGUE[note.finding].what}" + (f" ({note.detail})" if note.detail else "")
        return "" if examples else "empty: nothing in it is learned from"

    def _stops(self, note: Note) -> bool:
        if note.finding == "truncation" and self.settings.truncation != "error":
            return False
        return CATALOGUE[note.finding].level == "error" and note.finding not in self.settings.allow
