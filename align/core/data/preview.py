"""Show the examples that an algorithm would make of a data file, for ``align data show``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from rich.text import Text

from align.core.data.datasets import CHUNK_ROWS, WORTH_PROCESSES, make_examples, tokenize_chunk
from align.core.data.encode import Encoder
from align.core.data.examples import Example, TokenSequence
from align.core.data.rows import BadRow, BadRows
from align.core.data.sources import Reading
from align.core.data.template_checks import Tally, TemplateFinding, TokenizationSettings
from align.core.util.child_processes import ordered_map
from align.schemas.records import Record
from align.schemas.run import Source

SCORED, GIVEN = ("green", "green underline"), ("bright_black", "bright_black underline")
"""Styles of scored and unscored tokens. Every other token is underlined, to show where tokens end."""


@dataclass
class Preview:
    """A preview of a source. first: the first records with their examples. rows: the number of good rows."""

    first: list[tuple[Record, list[Example]]] = field(default_factory=list)
    findings: list[TemplateFinding] = field(default_factory=list)
    rows: int = 0
    bad: BadRows = field(default_factory=BadRows)

    @property
    def clean(self) -> bool:
        """True if training on the source would start."""
        return not len(self.bad) and all(finding.level != "error" for finding in self.findings)


def preview_source(
    source: Source, encoder: Encoder, settings: TokenizationSettings, first: int, progress: bool | None = None
) -> Preview:
    """Read a source, make examples of all its rows and keep those of the ``first``.

    Raises AlignError where the source cannot be read, or holds nothing that the algorithm learns from.
    """
    settings.check(encoder)
    seen, tally = Preview(), Tally()
    reading = Reading(source, settings.learns_from)

    def records() -> Iterator[Record]:
        for item in reading.rows(progress=progress):
            if isinstance(item, BadRow):
                seen.bad.add(item)
                continue
            if seen.rows < first:
                seen.first.append((item.record, make_examples(item.record, encoder, settings)[0]))
            seen.rows += 1
            yield item.record

    rows = records()
    chunks: Iterator[Sequence[Record]] = iter(lambda: list(islice(rows, CHUNK_ROWS)), [])
    large = sum(part.size for part in reading.parts) >= WORTH_PROCESSES
    items = ((chunk, [0] * len(chunk)) for chunk in chunks)
    for _, noticed in ordered_map(
        tokenize_chunk, (encoder, settings), items, len(os.sched_getaffinity(0)) if large else 0
    ):
        tally.merge(noticed)
    seen.findings = tally.findings(settings, encoder)
    return seen


def legend(colour: bool) -> Text:
    """Return the legend for the output of ``format_example``."""
    scored = Text("scored", SCORED[0]) if colour else Text("[[scored]]")
    rest = "; every other token is underlined" * colour + "; ↵ is a line end"
    return Text.assemble("what is learned: ", scored, ", what is only read: ", ("not scored", GIVEN[0]), rest)


def format_example(example: Example, encoder: Encoder, colour: bool) -> Text:
    """Return an example as text, sequence by sequence. Without ``colour`` scored tokens are in double brackets."""
    numbers = "".join(f", {name} {value:g}" for name, value in example.columns.items())
    text = Text.assemble((visible(example.source) + numbers, "bold"))
    for sequence in example.sequences:
        counts = f"{len(sequence)} tokens, {int(sequence.scored.sum())} scored"
        weights, sizes = np.unique(sequence.weights, return_counts=True)
        counts += "".join(f", {n} with weight {w:g}" for w, n in zip(weights, sizes, strict=True) if w != 1)
        text.append(f"\n{visible(sequence.role)}: {counts}\n", "italic")
        text.append_text(Text().join(_tokens(sequence, encoder, colour)))
    return text


def _tokens(sequence: TokenSequence, encoder: Encoder, colour: bool) -> Iterator[Text]:
    scored = [False, *sequence.scored.tolist(), False]
    for i, piece in enumerate(encoder.pieces(sequence.tokens.tolist()), 1):
        text = visible(piece).replace("\n", "↵\n")
        if scored[i] and not colour:
            text = "[[" * (not scored[i - 1]) + text + "]]" * (not scored[i + 1])
        yield Text(text, (SCORED if scored[i] else GIVEN)[i % 2])


def visible(text: str) -> str:
    """Return text with characters that a terminal might obey (controls, escapes, direction marks) written as escapes.

    Line ends stay.
    """
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else ascii(c)[1:-1] for c in text
    )
