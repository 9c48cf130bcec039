"""Curves as SVG geometry: numbers in, path data and tick places out. No text of anybody's passes through here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.core.report.read import Points

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 24
MOST_POINTS = 240


@dataclass(frozen=True, slots=True)
class Mark:
    """A held-out evaluation: where it is drawn, and what it says."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: the training course (raw and smoothed), and the held-out one."""

    raw: str
    smooth: str
    held_out: str
    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str
    """For those who cannot see it."""


def chart(training: Points, held_out: Points) -> Chart:
    """Draw a metric; at least one of the two must have points."""
    training = thin(training)
    smoothed = smooth(training)
    xs = [x for x, _ in training + held_out]
    ys = [y for _, y in held_out + (training if len(training) < 8 else smoothed)]
    # The raw course may leave the picture a little: one wild step must not flatten everything else.
    if len(training) >= 8:
        ranked = sorted(y for _, y in training)
        ys += [ranked[len(ranked) // 50], ranked[-1 - len(ranked) // 50]]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = min(1.02, max(-0.02, (y - y_low) / (y_high - y_low)))
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def path(points: Points) -> str:
        return "M" + "L".join(f"{x},{y}" for x, y in (place(*point) for point in points)) if len(points) > 1 else ""

    shown = held_out if held_out else smoothed
    return Chart(
        raw=path(training),
        smooth=path(smoothed),
        held_out=path(held_out),
        marks=[Mark(*place(x, y), f"step {x:g}: {number(y)}") for x, y in thin(held_out, 60)],
        x_ticks=[(place(x, y_low)[0], number(x)) for x in x_ticks if x_low <= x <= x_high],
        y_ticks=[(place(x_low, y)[1], number(y)) for y in y_ticks],
        summary=f"from {number(shown[0][1])} to {number(shown[-1][1])} over {number(x_high - x_low)} steps",
    )


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points: means over runs of neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Points) -> Points:
    """Exponential moving average over about a twentieth of the course, without the pull of its start."""
    if len(points) < 8:
        return list(points)
    keep = 1 - 1 / max(2.0, len(points) / 20)
    mean, weight, course = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        course.append((x, mean / weight))
    return course


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span low..high, about so many."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        reach = abs(low) / 2 or 0.5
        low, high = low - reach, high + reach
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short: 3 significant digits, 12.3k, 4e-05."""
    if abs(value) >= 10_000:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "0" if text in ("-0", "0") else text

