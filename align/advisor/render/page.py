"""Advice as one self-contained HTML page: no script, nothing loaded, every value escaped."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.advisor.render.outline import Bar, footer, heading, outline
from align.schemas.advice import Advice
from align.schemas.text import visible

HERE = Path(__file__).parent
WIDTH = 400


def render(advice: Advice) -> str:
    """The page."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["shares"] = shares
    return environment.get_template("page.html").render(
        advice=advice,
        heading=heading(advice),
        sections=outline(advice),
        footer=footer(advice),
        style=style,
        # Whoever got text past the escaping could still not style, script, load or send anything.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def shares(bar: Bar) -> list[tuple[float, float]]:
    """(left edge, width) of each part; what does not fit is cut off at the right end, and the text says so."""
    assert bar.capacity
    edges, left = [], 0.0
    for gb in bar.parts.values():
        if gb:
            right = min(float(WIDTH), left + WIDTH * gb / bar.capacity)
            edges.append((round(left, 1), round(right - left, 1)))
            left = right
    return edges
