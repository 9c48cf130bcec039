"""Advice for the terminal: what was understood, the answer, the quoted words with their reasons, few colours.

Lines are wrapped here and not by rich's tables, which would cut or wrap commands: those must be copyable.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from align.advisor.render.outline import (
    UNDERSTOOD,
    Item,
    MemoryBar,
    Section,
    Tone,
    confidence,
    correction,
    footer,
    heading,
    not_stated,
    outline,
    readings,
)
from align.schemas.advice import Advice, Quote
from align.schemas.text import visible

WIDEST = 100
"""Most columns of a page in a terminal: longer lines are hard to read."""
UNWRAPPED = 100_000
"""The width of a page that no terminal shows."""
MARKS = 28
"""Widest column of marks; a longer one stands above its text."""
SHORTEST_QUOTE = 24
"""Fewest columns for a quote next to a fact; with less room it goes below."""
INDENT = 2
CELLS = 40
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "warning": "yellow", "error": "red"}
CONFIDENCE = {"high": "green", "medium": "yellow", "low": "red"}


def render(advice: Advice, width: int | None = 100, colour: bool = False) -> str:
    """Return the advice as text, with ANSI colours or without.

    width: of the terminal, in columns; None for a pipe or a file: then no line is wrapped and no quote is cut, so that
    a search finds whole sentences. Commands and settings are never wrapped.
    """
    page = _Page(UNWRAPPED if width is None else max(40, min(width, WIDEST)), colour)
    page.title(UNDERSTOOD)
    page.understood(advice)
    page.line(Text())
    page.wrapped(Text.assemble((visible(heading(advice)), "bold"), "  ", _confidence(advice)))
    page.wrapped(_flat(advice.summary))
    for section in outline(advice):
        page.line(Text())
        page.title(section.title)
        page.section(section)
    page.line(Text())
    page.wrapped(_flat(footer(advice), "dim"))
    return page.text()


def _confidence(advice: Advice) -> tuple[str, str]:
    return confidence(advice), CONFIDENCE[advice.confidence]


def _flat(text: str, style: str = "") -> Text:
    """Text of others in one line."""
    return Text(" ".join(visible(text).split()), style)


class _Page:
    """The lines of a page."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = width
        self.console = Console(
            file=io.StringIO(),
            width=UNWRAPPED,
            force_terminal=colour,
            color_system="standard" if colour else None,
            highlight=False,
            emoji=False,
            markup=False,
            legacy_windows=False,
            _environ={},
        )
        self.lines: list[Text] = []

    def text(self) -> str:
        with self.console.capture() as shown:
            for line in self.lines:
                self.console.print(line, soft_wrap=True)
        return "\n".join(line.rstrip() for line in shown.get().split("\n")).rstrip("\n") + "\n"

    def line(self, text: Text) -> None:
        self.lines.append(text)

    def title(self, text: str) -> None:
        self.line(Text(text, "bold cyan"))

    def wrapped(self, text: Text, indent: int = 0) -> None:
        for part in self.split(text, self.width - indent):
            self.line(Text(" " * indent) + part)

    def split(self, text: Text, width: int) -> list[Text]:
        return list(text.wrap(self.console, width)) if text.cell_len > width else [text]

    def beside(self, mark: Text, column: int, body: list[Text]) -> None:
        """Add lines with a mark on the left of the first one."""
        if mark.cell_len > column:
            self.wrapped(mark, INDENT)
            mark = Text()
        for line in body or [Text()]:
            self.line(Text(" " * INDENT) + mark + Text(" " * (column - mark.cell_len + INDENT)) + line)
            mark = Text()

    def section(self, section: Section) -> None:
        marks = [_flat(item.mark, STYLES[item.tone] or "bold") for item in section.items]
        widest = max(mark.cell_len for mark in marks)
        column = min(widest, MARKS, self.width // 3)
        indent = INDENT + (column + INDENT if widest else 0)
        for mark, item in zip(marks, section.items, strict=True):
            body = [part for line in _body(item) for part in self.split(line, self.width - indent)]
            body += [_flat(line, "cyan") for line in item.code]
            if widest:
                self.beside(mark, column, body)
            else:
                for line in body:
                    self.line(Text(" " * INDENT) + line)

    # What was understood

    def understood(self, advice: Advice) -> None:
        found = readings(advice)
        unknown = not_stated(advice)
        topics = [reading.topic for reading in found] + ["not stated"] * bool(unknown)
        column = max(map(len, topics))
        left = self.width - column - 2 * INDENT
        for reading in found:
            mark = Text(reading.topic, "bold")
            for entry in reading.entries:
                self.beside(mark, column, list(self._entry(entry, left)))
                mark = Text()
        if unknown:
            self.beside(Text("not stated", "bold"), column, self.split(Text(unknown), left))
        self.wrapped(Text(correction(advice), "dim"), INDENT)

    def _entry(self, entry: Item, width: int) -> Iterator[Text]:
        """Yield the lines of one entry: the fact, its words, and its settings on the right where there is room."""
        settings = Text("  ").join([_flat(line, "cyan") for line in entry.code])
        if self.width == UNWRAPPED:
            yield Text("  ").join([_flat(entry.text), *self._quoted(entry.quotes, width), settings])
            return
        lines = self._words(entry, width - settings.cell_len - INDENT)
        if len(lines) == 1:
            yield lines[0] + Text(" " * (width - lines[0].cell_len - settings.cell_len)) + settings
            return
        yield from self._words(entry, width)
        yield from [settings] if settings.cell_len <= width else [_flat(line, "cyan") for line in entry.code]

    def _words(self, entry: Item, width: int) -> list[Text]:
        """Return a fact and its first quote: in one line, the quote cut, where it leaves room to recognise it."""
        text = _flat(entry.text)
        if not entry.quotes:
            return self.split(text, max(1, width))
        quote = self._quoted(entry.quotes, max(SHORTEST_QUOTE, width - text.cell_len - INDENT))[0]
        if text.cell_len + INDENT + quote.cell_len <= width:
            return [text + Text(" " * INDENT) + quote]
        return [*self.split(text, max(1, width)), *self._quoted(entry.quotes, max(SHORTEST_QUOTE, width))]

    def _quoted(self, quotes: tuple[Quote, ...], width: int) -> list[Text]:
        """Return the first quote, cut to a width, with the number of further ones; nothing without quotes."""
        if not quotes:
            return []
        source = "" if quotes[0].source == "description" else f" {visible(quotes[0].source)}"
        more = f" +{len(quotes) - 1}" if len(quotes) > 1 else ""
        words = _flat(quotes[0].quote, "italic")
        words.truncate(max(SHORTEST_QUOTE // 2, width - len(source) - len(more) - 2), overflow="ellipsis")
        quoted = Text.assemble(("“", "italic"), words, ("”", "italic"), (source + more, "dim"))
        quoted.truncate(width, overflow="ellipsis")
        return [quoted]


def _body(item: Item) -> list[Text]:
    lines = [_flat(item.text)]
    for quote in item.quotes:
        words = _flat(quote.quote)
        lines.append(Text.assemble((f"“{words.plain}”", "italic"), (f"  {visible(quote.source)}", "dim")))
    if item.bar is not None:
        lines += _bar(item.bar, STYLES[item.tone])
    return lines + [_flat(line, "dim") for line in item.more]


def _bar(bar: MemoryBar, style: str) -> list[Text]:
    parts = Text(visible(" · ".join(f"{name} {gb:.3g}" for name, gb in bar.parts.items() if gb)), "dim")
    if not bar.capacity:
        return [parts]
    filled = max(0, min(CELLS, round(CELLS * bar.total / bar.capacity)))
    return [Text.assemble(("█" * filled, style), ("░" * (CELLS - filled), "dim")), parts]
