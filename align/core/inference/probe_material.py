"""Material for probes: the rows of the user's files, sorted by the probes that can use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from align.core.config.project_file import text_of
from align.core.data.formats import KINDS
from align.core.data.lint.linter import pages_at
from align.core.data.mixture import load_records
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Content, Record
from align.schemas.run import Data, Source

PLAIN = frozenset((".txt", ".md", ".rst", ".tex", ".adoc"))
"""Suffixes of pages that are read as plain text."""


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A prompt and its right answer.

    record: of kind prompt, with the row's columns. For rewards the answer is added as ``solution``, unless the row has
    such a column.
    """

    record: Record
    wanted: str


@dataclass(slots=True)
class Material:
    """Rows by use. prompts: those without an answer. texts: documents and corpora."""

    questions: list[QuestionAnswer] = field(default_factory=list)
    prompts: list[Record] = field(default_factory=list)
    pairs: list[Record] = field(default_factory=list)
    texts: list[Record] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Sequence[str]) -> Material:
        """Read all rows of files, directories, hub ids and plain-text pages.

        Raises AlignError for rows that cannot be read, and for pages in other formats than plain text.
        """
        found = cls()
        for path in paths:
            pages = pages_at(path)
            found.texts += _texts(pages)
            for record in [] if pages else load_records(Data(train=[Source(path=path)]), KINDS).train:
                found.add(record)
        return found

    def add(self, record: Record) -> None:
        """Add a row, unless no probe can use it; in a conversation the last message is the right answer."""
        if record.kind == "preference":
            self.pairs.append(record)
        elif record.kind == "prompt":
            self.prompts.append(record)
        elif record.kind == "completion":
            self._ask(record, record.prompt, record.completion)
        elif record.kind == "text" and isinstance(record.text, list):
            if len(record.text) > 1 and record.text[-1].get("role") == "assistant":
                self._ask(record, record.text[:-1], record.text[-1:])
        elif record.kind == "text":
            self.texts.append(record)

    def _ask(self, record: Record, prompt: Content | None, answer: Content | None) -> None:
        wanted = plain(answer)
        if prompt and wanted.strip():
            columns = {"solution": wanted, **record.columns}
            question = replace(record, kind="prompt", text=None, prompt=prompt, completion=None, columns=columns)
            self.questions.append(QuestionAnswer(question, wanted))


def _texts(pages: Sequence[Path]) -> list[Record]:
    problems = [
        Problem(str(page), "is no plain text", "convert it: pandoc, pdftotext")
        for page in pages
        if page.suffix.lower() not in PLAIN
    ]
    if problems:
        raise AlignError.gather(problems)
    return [Record("text", str(page), text=text) for page in pages if (text := text_of(str(page))).strip()]


def plain(content: Content | None) -> str:
    """Return a text, or the texts of messages joined by line breaks."""
    if isinstance(content, list):
        return "\n".join(str(message.get("content") or "") for message in content)
    return content or ""
