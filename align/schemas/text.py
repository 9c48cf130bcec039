"""Hostile text made harmless to look at, and numbers made short."""

from __future__ import annotations

import math
import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, delete, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, zero width, separators
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"  # surrogates, noncharacters, tags
)

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Terminal escapes for colours and cursor movements. Of other sequences only the escape character is removed."""


def stripped(text: str) -> str:
    """Return a message without terminal escapes, control characters, bidirectional overrides and other unseen ones.

    Tabs and newlines stay, and so do letters of right-to-left scripts and the joiners that emoji and Persian need.
    """
    return _UNSEEN.sub("", _ESCAPES.sub("", text))


def visible(text: str) -> str:
    r"""Control characters, bidirectional overrides and other unseen ones as signs that can be seen.

    ``\x1b`` becomes ``⟨U+001B⟩``. The result can always be encoded as UTF-8.
    Letters of right-to-left scripts and the joiners that emoji and Persian need stay.
    """
    return _UNSEEN.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    return f"⟨U+{ord(found.group()):04X}⟩"


def number(value: float) -> str:
    """Short: three significant digits, 12.3k, 4e-5."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 999_500:
        text = f"{size / 1e6:.3g}M" if size < 999.5e6 else _power(size)
    elif size >= 9_999.5:
        text = f"{size / 1e3:.3g}k"
    else:
        text = f"{size:.0f}" if size >= 999.5 else f"{size:.3g}" if size >= 1e-3 or size == 0 else _power(size)
    return "−" + text if value < 0 else text


def _power(size: float) -> str:
    digits, _, exponent = f"{size:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def percent(share: float) -> str:
    """``93.1 %``."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else number(share)
