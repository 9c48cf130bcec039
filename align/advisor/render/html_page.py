"""Advice as one self-contained HTML page: no script, nothing loaded, every value escaped."""

from __future__ import annotations

from pathlib import Path

from align.advisor.render.outline import (
    UNDERSTOOD,
    MemoryBar,
    confidence,
    correction,
    footer,
    heading,
    not_stated,
    outline,
    readings,
)
from align.schemas.advice import Advice
from align.schemas.html_template import html

HERE = Path(__file__).parent
WIDTH = 400


def render(advice: Advice) -> str:
    """Return the page as HTML."""
    return html(
        HERE / "advice.html",
        HERE / "style.css",
        advice=advice,
        shares=shares,
        heading=heading(advice),
        confidence=confidence(advice),
        understood=UNDERSTOOD,
        readings=readings(advice),
        not_stated=not_stated(advice),
        correction=correction(advice),
        sections=outline(advice),
        footer=footer(advice),
    )


def shares(bar: MemoryBar) -> list[tuple[float, float]]:
    """Return (left edge, width) of each part in pixels; parts beyond the capacity are cut off at the right end."""
    assert bar.capacity
    edges, left = [], 0.0
    for gb in bar.parts.values():
        if gb:
            right = min(float(WIDTH), left + WIDTH * gb / bar.capacity)
            edges.append((round(left, 1), round(right - left, 1)))
            left = right
    return edges
