"""Hostile text made harmless to look at, and numbers made short."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

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
    r"""Return a text with control characters, bidirectional overrides and other unseen ones as signs that can be seen.

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


def format_bytes(amount: float) -> str:
    """Format bytes with three significant digits, in powers of ten: 17.3 GB, 212 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(amount) >= 0.9995 * unit:
            return f"{amount / unit:.3g} {name}" if abs(amount) < 999.5 * unit else f"{amount / unit:,.0f} {name}"
    return f"{amount:.0f} B"


def _power(size: float) -> str:
    digits, _, exponent = f"{size:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def percent(share: float) -> str:
    """``93.1 %``."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else number(share)


# Keep keys and passwords out of everything that is printed, logged or written with a run. Pure text, no torch.

HIDDEN = "[hidden]"
SHORTEST = 6
"""The shortest value, in characters, that is removed wherever it occurs: a shorter one would take common words too."""

# Tokens of a vocabulary (bos_token, pad_token, ...) hold no secret, though their names end like those of API tokens.
_NAME = re.compile(
    r"secret|passw|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!stop_)(?<!mask_)token$|(api|access|private|auth)[_-]?key"
    r"|credential|authorization|bearer",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\bhf_\w{16,}|\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?<=//)[^/@\s]+(?=@)|(?<=Bearer )\S+"
)
"""Keys that are known by their form (OpenAI, Hugging Face, GitHub, Slack, AWS, JWT, bearer tokens), and user name and
password in an address."""


def is_secret(name: str) -> bool:
    """Return whether a setting, variable or header of this name holds a secret."""
    return _NAME.search(name) is not None


def secrets_of(settings: Any, named: bool = False) -> Iterator[str]:
    """Yield the secrets among settings: strings under a secret name (``is_secret``), at any depth.

    named: whether ``settings`` itself stands under such a name.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from secrets_of(value, named or is_secret(str(name)))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from secrets_of(value, named)
    elif named and isinstance(settings, str) and len(settings) >= SHORTEST:
        yield settings


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text with the given secrets, and everything that has the form of one, replaced by ``HIDDEN``."""
    for secret in sorted(secrets, key=len, reverse=True):  # longest first: one may contain another
        text = text.replace(secret, HIDDEN)
    return _FORM.sub(HIDDEN, text)


def concealed(settings: Any, named: bool = False) -> Any:
    """Return settings in which a mark replaces each secret; equal secrets have equal marks, others have others.

    So a changed key is still noticed when two runs are compared, and no mark gives a key away. named: as in
    ``secrets_of``.
    """
    if isinstance(settings, Mapping):
        return {name: concealed(value, named or is_secret(str(name))) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [concealed(value, named) for value in settings]
    if not isinstance(settings, str) or not settings:
        return settings
    return _mark(settings) if named else _FORM.sub(lambda found: _mark(found.group()), settings)


def shown_argument(argument: str) -> str:
    """Return a word of a command line as it may be stored: the value of ``a.b.api_key=VALUE`` is hidden."""
    name, equals, _ = argument.partition("=")
    return f"{name}={HIDDEN}" if equals and is_secret(name) else redacted(argument)


def _mark(secret: str) -> str:
    return f"[hidden {sha256(secret.encode()).hexdigest()[:8]}]"
