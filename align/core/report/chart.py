"""Curves as SVG geometry: numbers in, path data and positions out. No text from a run passes through here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.schemas.text import number

Points = Sequence[tuple[float, float]]
"""(step, value) in the order of the steps; a value may be NaN."""

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 20, 22
MOST_POINTS = 240
MOST_STOPS = 40
LARGEST, SMALLEST = 1e200, 1e-200
"""Larger values are drawn as not finite, smaller ones as zero, so that differences of the others cannot overflow."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A column of the picture that shows a text when the pointer is over it."""

    left: float
    width: float
    dots: tuple[tuple[float, float], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: the curve of training, raw and smoothed, and that of held-out data."""

    raw: str
    smooth: str
    held_out: str
    marks: list[tuple[float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    stops: list[Stop]
    ends: tuple[str, str]
    """The first and the last finite value; of the held-out curve, if there is one."""
    lost: int
    """The number of values that are not finite."""

    @property
    def summary(self) -> str:
        """``5.98 → 3.3``."""
        first, last = self.ends
        return (f"{first} → {last}" if first != last else first) + (f", {self.lost} not finite" if self.lost else "")


def chart(training: Points, held_out: Points, smoothed: bool = True) -> Chart | None:
    """Draw a metric; return None if no value is finite. smoothed: True smooths the training curve, which is noisy."""
    training, held_out = thin(_tamed(training)), thin(_tamed(held_out))
    line = smooth(training) if smoothed else training
    steps = [x for x, _ in [*training, *held_out]]
    values = [y for _, y in [*held_out, *line] if math.isfinite(y)]
    if not values:
        return None
    # The scale leaves out the outer 2 % of raw values: one wild step must not flatten everything else.
    ranked = sorted(y for _, y in training if math.isfinite(y))
    if ranked:
        values += [ranked[len(ranked) // 50], ranked[-1 - len(ranked) // 50]]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_ticks = ticks(min(values), max(values), 4)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = min(1.03, max(-0.03, (y - y_low) / (y_high - y_low)))
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def path(points: Points) -> str:
        """Return the path data of a curve; a value that is not finite breaks the line."""
        parts, pen = [], "M"
        for x, y in points:
            if math.isfinite(y):
                parts.append("{}{},{}".format(pen, *place(x, y)))
            pen = "L" if math.isfinite(y) else "M"
        return "".join(parts)

    def stops() -> Iterator[Stop]:
        count = min(MOST_STOPS, len(line) or len(held_out))
        width = (WIDTH - LEFT - RIGHT) / count
        for i in range(count):
            left = LEFT + i * width
            last = i == count - 1

            def latest(points: Points, left: float = left, last: bool = last) -> list[tuple[float, float]]:
                """Return the last point of a curve in this column, as a list of one or none."""
                inside = [
                    (x, y) for x, y in points if left <= place(x, y_low)[0] < left + width or (last and x == x_high)
                ]
                return inside[-1:]

            trained, held = latest(line), latest(held_out)
            if found := [*trained, *held]:
                step = found[0][0]
                values = [number(y) for _, y in trained]
                values += [f"held out {number(y)}" + (f" at {x:g}" if x != step else "") for x, y in held]
                dots = tuple(place(x, y) for x, y in found if math.isfinite(y))
                yield Stop(round(left, 1), round(width, 1), dots, f"step {step:g}: {', '.join(values)}")

    return Chart(
        raw=path(training) if line is not training else "",
        smooth=path(line),
        held_out=path(held_out),
        marks=[place(x, y) for x, y in thin(held_out, 40) if math.isfinite(y)],
        x_ticks=[(place(x, y_low)[0], number(x)) for x in ticks(x_low, x_high, 4) if x_low <= x <= x_high],
        y_ticks=[(place(x_low, y)[1], number(y)) for y in y_ticks],
        stops=list(stops()),
        ends=_ends(held_out or training),
        lost=sum(not math.isfinite(y) for _, y in held_out or training),
    )


def _tamed(points: Points) -> Points:
    """Return the points with values beyond ``LARGEST`` as NaN and below ``SMALLEST`` as 0."""

    def tamed(y: float) -> float:
        if not abs(y) < LARGEST:  # "not <" also catches NaN
            return math.nan
        return 0.0 if abs(y) < SMALLEST else y

    return [(x, tamed(y)) for x, y in points]


def _ends(points: Points) -> tuple[str, str]:
    """Return the first and the last finite value as text; values that are only rounding error count as 0."""
    known = [y for _, y in points if math.isfinite(y)] or [math.nan]
    size = max(map(abs, known))
    first, last = (number(y if not abs(y) < 1e-6 * size else 0.0) for y in (known[0], known[-1]))
    return first, last


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Reduce a curve to at most ``most`` points: the means over runs of neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Points) -> Points:
    """Return the exponential moving average over about a twentieth of the curve, not biased towards its start.

        m_t = sum_k a^k y_{t-k} / sum_k a^k,   a = 1 - 1 / max(2, n / 20)

    Curves of less than 8 points stay as they are; NaN stays NaN and is left out of the mean.
    """
    if len(points) < 8:
        return points
    keep = 1 - 1 / max(2.0, len(points) / 20)
    total, weight, course = 0.0, 0.0, []
    for x, y in points:
        if math.isfinite(y):
            total, weight = keep * total + y, keep * weight + 1
        course.append((x, total / weight if math.isfinite(y) else math.nan))
    return course


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return about ``about`` round numbers (1, 2 or 5 times a power of ten apart) that span low to high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        reach = max(abs(low), abs(high)) / 2 or 0.5
        low, high = low - reach, high + reach
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]
