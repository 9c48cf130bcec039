"""Find personal data and secrets by their patterns and, where they have them, check digits.

Matches are counted and never shown.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from align.core.data.lint.finding import Lint, LintFinding, Places, finding
from align.core.data.lint.row_view import RowView, around

_MAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})\b")
_RESERVED = re.compile(r"(?:^|\.)example(?:\.(?:com|org|net))?$|\.(?:invalid|test|localhost)$", re.IGNORECASE)
"""Domains that exist for examples and belong to nobody (RFC 2606)."""
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+[1-9][\d ()./-]{6,18}\d|\(\d{3}\) ?\d{3}-\d{4}|\d{3}[-.]\d{3}[-.]\d{4})(?![\w-])"
)
"""International, or as North Americans write them; ``phonenumbers`` then says whether that can be a number."""
_AT = re.compile("@")
_DIGITS = re.compile(r"\d(?:[ .-]?[\dA-Z]){4}")
_NEAR = 40
READ = 1_000_000
"""Characters of a row that are searched."""
TRIED = 1_000
"""Numbers of one shape in one row whose check digits are tried."""


class SensitivePattern(NamedTuple):
    """A kind of secret or of personal number. hints: one must be in the text. near: must stand before."""

    name: str
    pattern: re.Pattern[str]
    hints: Sequence[str] = ()
    check: str = ""
    near: re.Pattern[str] | None = None


@cache
def shapes(group: str) -> tuple[SensitivePattern, ...]:
    """Return the patterns of a group, ``secrets`` or ``personal``, from sensitive.yaml."""
    held = yaml.load((Path(__file__).parent / "sensitive.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return tuple(
        SensitivePattern(
            name,
            re.compile(entry["pattern"], re.ASCII),
            entry.get("hints", ()),
            entry.get("check", ""),
            re.compile(entry["near"]) if "near" in entry else None,
        )
        for name, entry in held[group].items()
    )


@cache
def _hints() -> re.Pattern[str]:
    return re.compile("|".join(re.escape(hint) for shape in shapes("secrets") for hint in shape.hints))


def secrets(text: str) -> set[str]:
    """Return the kinds of secrets that a text seems to contain."""
    if not _hints().search(text):
        return set()
    return {shape.name for shape in shapes("secrets") if any(h in text for h in shape.hints) and _real(shape, text)}


def _real(shape: SensitivePattern, text: str) -> bool:
    """Return True if a match is no placeholder such as XXXX or abcabc, which have few different characters."""
    for match in shape.pattern.finditer(text):
        if shape.name in ("private key", "password in a URL") or len(set(match[0][-16:])) >= 8:
            return True
    return False


def personal(text: str) -> set[str]:
    """Return the kinds of personal data that a text seems to contain."""
    found = set[str]()
    if "@" in text and any(not _RESERVED.search(m[1]) for m in _MAIL.finditer(around(text, _AT, 66, 260))):
        found.add("e-mail address")
    text = around(text, _DIGITS, 2 * _NEAR, _NEAR)
    if not text:
        return found
    taken = list[tuple[int, int]]()
    for shape in shapes("personal"):
        for match in islice(shape.pattern.finditer(text), TRIED):
            before = text[max(0, match.start() - _NEAR) : match.start()]
            if shape.near is not None and not shape.near.search(before):
                continue
            if shape.check and not _checks(shape.check)(match[0]):
                continue
            found.add(shape.name)
            taken.append(match.span())
    for match in islice(_PHONE.finditer(text), TRIED):
        if not any(low < match.end() and match.start() < high for low, high in taken) and _dialled(match[0]):
            found.add("phone number")
            break
    return found


@cache
def _checks(module: str) -> Callable[[str], bool]:
    valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    if module == "luhn":
        return lambda number: valid(re.sub("[ -]", "", number))
    return valid


def _dialled(text: str) -> bool:
    import phonenumbers

    try:
        number = phonenumbers.parse(text, None if text.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    made_up = "555" in text and number.country_code == 1  # 555-0100 to 555-0199 are for films
    return not made_up and bool(phonenumbers.is_valid_number(number))


class SensitiveData(Lint):
    """Rows with personal data, and rows with secrets."""

    def __init__(self) -> None:
        self._rows = {"pii": array("Q"), "secrets": array("Q")}
        self._kinds = {"pii": Counter[str](), "secrets": Counter[str]()}

    def see(self, row: RowView) -> None:
        """Search the text of a row."""
        for id, search in (("secrets", secrets), ("pii", personal)):
            if found := search(row.text[:READ]):
                self._rows[id].append(row.number)
                self._kinds[id].update(found)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield the findings, secrets first."""
        for id in ("secrets", "pii"):
            if self._rows[id]:
                kinds = dict(sorted(self._kinds[id].items(), key=lambda kind: (-kind[1], kind[0])))
                listed = ", ".join(f"{name} {count:,}" for name, count in kinds.items())
                yield finding(id, places, self._rows[id], by_kind=listed, kinds=kinds)
