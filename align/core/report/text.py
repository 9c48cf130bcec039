"""Hostile text made harmless to look at, and numbers made short."""

from __future__ import annotations

import math
import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, delete, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, zero width, separators
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"  # surrogates, noncharacters, tags
)


def visible(text: str) -> str:
    r"""Control characters, bidirectional overrides and other unseen ones as signs that can be seen.

    ``\x1b`` becomes the symbol for escape, U+202E becomes ``⟨U+202E⟩``. The result can always be encoded as UTF-8.
    Letters of right-to-left scripts and the joiners that emoji and Persian need stay.
    """
    return _UNSEEN.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def number(value: float) -> str:
    """Short: three significant digits, 12.3k, 4e-05."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 9_999.5:
        return f"{value / 1e6:.3g}M" if abs(value) >= 999_500 else f"{value / 1e3:.3g}k"
    text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return "0" if text in ("-0", "0") else text.replace("-", "−", 1) if text.startswith("-") else text


def percent(share: float) -> str:
    """``93.1 %``."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else str(share)
