"""Advice for the terminal: the answer first, the quoted words with their reasons, few colours."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from align.advisor.render.outline import Item, MemoryBar, Section, Tone, footer, heading, outline
from align.schemas.advice import Advice
from align.schemas.text import visible

MARKS = 28
"""Widest column of marks; a longer one is folded."""
CELLS = 40
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "warning": "yellow", "error": "red"}
CONFIDENCE = {"high": "green", "medium": "yellow", "low": "red"}


def render(advice: Advice, width: int = 100, colour: bool = False) -> str:
    """Return the advice as text, ``width`` columns wide, with ANSI colours or without."""
    page = Console(
        file=io.StringIO(),
        width=max(40, min(width, 100)),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
        _environ={},
    )
    with page.capture() as shown:
        page.print(Text.assemble((visible(heading(advice)), "bold"), "  ", _confidence(advice)))
        page.print(Text(visible(advice.summary)))
        for section in outline(advice):
            page.print()
            page.print(Text(section.title, "bold cyan"))
            page.print(Padding(_items(section), (0, 0, 0, 2)))
        page.print()
        page.print(Text(visible(footer(advice)), "dim"))
    return "\n".join(line.rstrip() for line in shown.get().splitlines()) + "\n"


def _confidence(advice: Advice) -> tuple[str, str]:
    return f"confidence {advice.confidence}", CONFIDENCE[advice.confidence]


def _items(section: Section) -> RenderableType:
    marked = any(item.mark for item in section.items)
    widest = max(len(visible(item.mark)) for item in section.items)
    grid = Table.grid(padding=(0, 2, 0, 0))
    if marked:
        grid.add_column(width=min(widest, MARKS), overflow="fold")
    grid.add_column(ratio=1, overflow="fold")
    for item in section.items:
        cells = [Text(visible(item.mark), STYLES[item.tone] or "bold")] if marked else []
        grid.add_row(*cells, _body(item))
    return grid


def _body(item: Item) -> RenderableType:
    lines: list[RenderableType] = [Text(visible(item.text))]
    for quote in item.quotes:
        words = " ".join(visible(quote.quote).split())
        lines.append(Text.assemble((f"“{words}”", "italic"), (f"  {visible(quote.source)}", "dim")))
    if item.bar is not None:
        lines += _bar(item.bar, STYLES[item.tone])
    lines += [Text(visible(line), "dim") for line in item.more]
    lines += [Text(visible(line), "cyan") for line in item.code]
    return Group(*lines)


def _bar(bar: MemoryBar, style: str) -> list[RenderableType]:
    parts = Text(visible(" · ".join(f"{name} {gb:.3g}" for name, gb in bar.parts.items() if gb)), "dim")
    if not bar.capacity:
        return [parts]
    filled = max(0, min(CELLS, round(CELLS * bar.total / bar.capacity)))
    return [Text.assemble(("█" * filled, style), ("░" * (CELLS - filled), "dim")), parts]
