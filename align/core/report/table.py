"""Measurements before and after each stage: plain data, and a table of it for the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from align.schemas.text import number, percent, visible

Verdict = Literal["better", "worse", "unclear", "untested"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, and the ends of its confidence interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) if both are known and finite, else None."""
        if self.low is None or self.high is None or not math.isfinite(self.low + self.high):
            return None
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure, on the model of every stage."""

    name: str
    figures: tuple[Figure | None, ...]
    """One for each of the table's stages; None if it was not measured."""
    unit: Literal["share", "number"] = "share"
    """A share of 1, shown in per cent, or a plain number."""
    better: Literal["higher", "lower"] = "higher"
    note: str = ""
    """The exact definition of the measure, and its rows."""

    def text(self, figure: Figure | None) -> str:
        """Return a figure as ``93.1 %``, or a dash without one."""
        if figure is None:
            return "–"
        return percent(figure.value) if self.unit == "share" else number(figure.value)

    def interval(self, figure: Figure | None) -> str:
        """Return a figure's interval as ``90.2 to 95.3 %``, or "" without one."""
        reach = figure.interval if figure else None
        if reach is None:
            return ""
        low, high = (percent(end) if self.unit == "share" else number(end) for end in reach)
        return f"{low.removesuffix(' %')} to {high}"

    @property
    def ends(self) -> tuple[Figure, Figure] | None:
        """The first and the last figure if there are two or more, else None."""
        known = [figure for figure in self.figures if figure is not None]
        return (known[0], known[-1]) if len(known) > 1 else None

    @property
    def verdict(self) -> Verdict:
        """The comparison of the last figure with the first; clear only if their intervals do not overlap."""
        first, last = [end.interval for end in self.ends] if self.ends else (None, None)
        if first is None or last is None:
            return "untested"
        (low, high), (last_low, last_high) = first, last
        if last_low > high:
            return "better" if self.better == "higher" else "worse"
        if last_high < low:
            return "worse" if self.better == "higher" else "better"
        return "unclear"


@dataclass(frozen=True, slots=True)
class MeasureTable:
    """Measures by stage."""

    stages: tuple[str, ...]
    """The base model first, then the stages in the order in which they were trained."""
    rows: tuple[MeasureRow, ...]

    def __post_init__(self) -> None:
        """Raise ValueError if a row has another number of figures than there are stages."""
        for row in self.rows:
            if len(row.figures) != len(self.stages):
                raise ValueError(f"{row.name}: {len(row.figures)} figures for {len(self.stages)} stages")


_COLOURS = {"better": "green", "worse": "red", "unclear": "", "untested": ""}


def print_table(table: MeasureTable, console: Console | None = None) -> None:
    """Print the table in the terminal; last figures that clearly differ from the first are coloured."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("")
    for stage in table.stages:
        drawn.add_column(Text(visible(stage)), justify="right", no_wrap=True)
    for row in table.rows:
        cells = [_cell(row, figure, last=figure is not None and row.figures[-1] is figure) for figure in row.figures]
        drawn.add_row(Text(visible(row.name), style="bold"), *cells)
    if any(figure and figure.interval for row in table.rows for figure in row.figures):
        drawn.caption = "below each figure: its 95 % confidence interval"
    (console or Console()).print(drawn)


def _cell(row: MeasureRow, figure: Figure | None, last: bool) -> Text:
    cell = Text(row.text(figure), style=_COLOURS[row.verdict] if last else "")
    if figure is not None and (reach := figure.interval) is not None:
        whole = f"{100 * reach[0]:.0f}–{100 * reach[1]:.0f} %"  # short, so that five models fit into 80 columns
        cell.append(f"\n{whole if row.unit == 'share' else row.interval(figure)}", style="dim")
    return cell


@dataclass(frozen=True, slots=True)
class StageCompletion:
    """The completion of one stage's model, and whether it is right, where that is known."""

    stage: str
    text: str
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class PromptSample:
    """A prompt, every stage's completion of it, and the reference answer, if there is one."""

    prompt: str
    answers: tuple[StageCompletion, ...]
    expected: str | None = None
