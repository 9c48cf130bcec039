"""Write the page of ``align data check --html``: findings and length histograms of each file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.data.lint.text_statistics import Lengths
from align.core.report import chart as size
from align.core.report.page import STYLE
from align.core.util.atomic_files import write_atomic
from align.schemas.html_template import html
from align.schemas.text import number

if TYPE_CHECKING:
    from align.core.data.lint.linter import ScanResult

UNITS = ("tokens", "words", "characters")
"""Units of length: the first that is known is drawn; all are in the table."""


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram as geometry: (left, top, width, height, label) of each bar, and the ticks of both axes."""

    name: str
    summary: str
    bars: list[tuple[float, float, float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def write_page(path: Path, results: Sequence[ScanResult]) -> None:
    """Write one self-contained page of all results, atomically."""
    page = html(Path(__file__).parent / "data_page.html", STYLE, files=[_file(result) for result in results], size=size)
    write_atomic(path, page.encode())


def _file(result: ScanResult) -> dict[str, Any]:
    unit = next((unit for unit in UNITS if any(one.unit == unit for one in result.lengths)), "")
    return {
        "result": result,
        "bars": [bars(one) for one in result.lengths if one.unit == unit],
        "lengths": sorted(result.lengths, key=lambda one: UNITS.index(one.unit)),
        "languages": [(code or "unclear", f"{share:.1%}") for code, share in result.languages.items()],
    }


def bars(lengths: Lengths) -> Bars:
    """Lay out a histogram: bars of equal width, because bins have equal ratios."""
    most = max((count for *_, count in lengths.histogram), default=0)
    y_ticks = [tick for tick in size.ticks(0, max(1, most), 4) if tick >= 0]
    wide = (size.WIDTH - size.LEFT - size.RIGHT) / max(1, len(lengths.histogram))
    high = size.HEIGHT - size.TOP - size.BOTTOM

    def up(value: float) -> float:
        return round(size.HEIGHT - size.BOTTOM - value / y_ticks[-1] * high, 1)

    drawn, x_ticks = [], []
    for i, (low, end, count) in enumerate(lengths.histogram):
        left = round(size.LEFT + i * wide, 1)
        span = f"{low:,} to {end - 1:,} {lengths.unit}" if end - low > 1 else f"{low:,}"
        label = f"{span}: {count:,} rows"
        drawn.append((left, up(count), round(wide - 1, 1), round(size.HEIGHT - size.BOTTOM - up(count), 1), label))
        if i % max(1, len(lengths.histogram) // 4) == 0:
            x_ticks.append((left, number(low)))
    return Bars(
        f"{lengths.part}, in {lengths.unit}",
        f"median {number(lengths.p50)}, 95% within {number(lengths.p95)}",
        drawn,
        x_ticks,
        [(up(tick), number(tick)) for tick in y_ticks],
    )
