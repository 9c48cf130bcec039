"""The size of drawings, and the round numbers of their axes."""

from __future__ import annotations

import math

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 20, 22


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
