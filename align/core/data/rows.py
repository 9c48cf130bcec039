"""Parse one line of JSON into a row strictly, and report the rows that cannot be used.

Nothing is dropped silently: a bad row becomes a ``RowError`` (the reason), then a ``BadRow`` (with its place), and all
of them are counted in ``BadRows`` and written to ``data_report.json``.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NoReturn

from align.core.util.atomic_files import Damaged, read_json, sealed, write_atomic
from align.schemas.errors import AlignError, Problem

FAULTS: Mapping[str, str] = {
    "malformed-json": "the line is no JSON",
    "malformed-csv": "quotes do not match, or the row has more or fewer cells than the header",
    "invalid-utf8": "bytes that are no UTF-8",
    "lone-surrogate": "half of a UTF-16 pair (\\ud83d): no Unicode text, tokenizers refuse it",
    "nul": "a NUL character",
    "too-long": "a line or a string over 16 MiB: tokenizers abort the process on such",
    "too-deep": "values nested more than 64 deep",
    "number": "NaN, infinite, or an integer of more than 4,300 digits",
    "duplicate-key": "one object gives a key twice",
    "missing-field": "a field that the format needs is not there",
    "wrong-type": "a field holds another type than the format says",
    "null": "content is null",
    "empty": "content is empty or white space",
    "media": "the row holds pictures, video or sound, or has a place for them: only text is learned",
    "bad-answer": "the answer is marked as a bad one (label: false), and the algorithm would learn it as a good one",
    "same-answers": "chosen and rejected are the same",
    "unknown-role": "a message's role is unknown",
    "message-order": "a turn is missing or out of place",
    "mixed": "the row is of another format, kind or style than the rows of its source",
    "duplicate-id": "an earlier row of the source has this id",
    "empty-file": "the file has no rows",
    "damaged-file": "the rest of the file cannot be read; stops even where bad rows are skipped",
    "refused": "the format plugin refused the row",
}
"""The kinds of row errors. docs/data.md lists them, which a test checks."""

LISTED = 100_000
"""Most bad rows kept and reported one by one; all are counted."""
SHOWN = 20
"""Most bad rows named in one error message."""


class RowError(ValueError):
    """The reason why a row cannot be used. kind: one of FAULTS. field: a path, ``messages[1].role``, or ""."""

    def __init__(self, kind: str, what: str, field: str = "") -> None:
        super().__init__(kind, what, field)
        self.kind, self.what, self.field = kind, what, field

    def __str__(self) -> str:
        return self.what

    def under(self, parent: str) -> RowError:
        """Return the same error with ``parent`` put before its field."""
        return RowError(self.kind, self.what, parent + self.field)


def not_utf8(error: UnicodeDecodeError) -> RowError:
    """Return the error of a row whose bytes are no UTF-8, naming the first such byte."""
    return RowError("invalid-utf8", f"byte {error.start + 1} is no UTF-8 ({error.object[error.start]:#04x})")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, with its place; line 0 means the file as a whole."""

    file: str
    line: int
    kind: str
    field: str
    what: str

    @property
    def where(self) -> str:
        """The place of the error, as in ``train.jsonl:17: messages[1].role``."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}" if self.field else place

    def __str__(self) -> str:
        return f"{self.where}: {self.what} [{self.kind}]"


@dataclass(slots=True)
class BadRows:
    """The bad rows of everything that was read: the count of each kind, and the first LISTED rows."""

    counts: Counter[str] = field(default_factory=Counter)
    rows: list[BadRow] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        """Count one bad row, and list it while there is room."""
        self.counts[row.kind] += 1
        if len(self.rows) < LISTED:
            self.rows.append(row)

    def merge(self, other: BadRows) -> None:
        """Add another collection's bad rows, except those that are listed here already."""
        known = set(self.rows)
        twice = [row for row in other.rows if row in known]
        self.counts += other.counts - Counter(row.kind for row in twice)
        self.rows += [row for row in other.rows if row not in known][: LISTED - len(self.rows)]

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def summary(self) -> str:
        """The counts in words: ``3 bad rows (2 empty, 1 malformed-json)``."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        return f"{len(self)} bad row{'s' if len(self) != 1 else ''}" + f" ({kinds})" * bool(kinds)

    def error(self, fix: str) -> AlignError:
        """Return one error that names the first SHOWN rows and gives the counts."""
        problems = [Problem(row.where, f"{row.what} [{row.kind}]") for row in self.rows[:SHOWN]]
        more = f"; the first {SHOWN} are shown" if len(self) > SHOWN else ""
        return AlignError.gather([*problems, Problem("", f"{self.summary}{more}", fix)])


def write_report(
    path: Path,
    sources: Iterable[Mapping[str, Any]],
    bad: BadRows,
    findings: Sequence[Mapping[str, Any]] = (),
    counted_on: bool = False,
) -> None:
    """Write the report of what was read and which rows were bad, replacing an older one atomically.

    sources: a summary of each source. findings: findings of data checks, as plain data. counted_on: ``read_report``
    will read the report when the run resumes, so it gets a checksum.
    """
    report = {
        "sources": list(sources),
        "bad": len(bad),
        "bad_by_kind": dict(bad.counts.most_common()),
        "bad_rows_listed": len(bad.rows),
        "bad_rows": [asdict(row) for row in bad.rows],
    }
    if findings:
        report["findings"] = list(findings)
    content = sealed(report, 1) if counted_on else (json.dumps(report, indent=1) + "\n").encode()
    write_atomic(path, content)


def read_report(path: Path) -> BadRows:
    """Return the bad rows of a report. A missing report gives none; so does a damaged one, with a message on stderr."""
    try:
        report = read_json(path)
    except FileNotFoundError:
        return BadRows()
    except Damaged as error:
        print(Problem(str(path), f"is damaged: {error.why}", "the bad rows in it are left out"), file=sys.stderr)
        return BadRows()
    return BadRows(Counter(report["bad_by_kind"]), [BadRow(**row) for row in report["bad_rows"]])


# Strict parsing. Python's json accepts NaN, lone surrogates and duplicate keys, on which later steps fail.
# The common case is fast: the text is parsed once, and the value is walked only where its bytes look suspicious.

MAX_ROW = 16 * 2**20
"""Most bytes of a row's line and most characters of a string in it: about four million tokens."""
MAX_DEPTH = 64
"""Deepest nesting of values in a row."""

_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class HasNaN(dict[str, Any]):
    """A row that contains NaN, which pandas writes for a missing value: accepted in columns that are not read."""


def without_nan(value: Any) -> Any:
    """Return the value with every NaN in it replaced by null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row, as a ``HasNaN`` if it contains NaN. Raises RowError for anything else that ``inspect`` finds."""
    try:
        inspect(row)
    except RowError as error:
        if error.kind != "number":
            raise
        inspect(row, nan=True)
        return HasNaN(row)
    return row


def parse(line: bytes) -> dict[str, Any]:
    """Return the row on a line of JSON, as a ``HasNaN`` where it holds NaN.

    Raises RowError: malformed-json, invalid-utf8, lone-surrogate, nul, too-long, too-deep, number, duplicate-key, or
    wrong-type where the line holds something else than an object.
    """
    if len(line) > MAX_ROW:
        raise RowError("too-long", f"is longer than {MAX_ROW >> 20} MiB")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    row = decode(text, nan=True)
    if not isinstance(row, dict):
        raise RowError("wrong-type", f"is {describe_type(row)}, not an object")
    suspicious = b"\\u" in line and _SUSPICIOUS.search(line)
    if suspicious or b"NaN" in line or line.count(b"{") + line.count(b"[") > MAX_DEPTH:
        return checked(row)
    return row


def decode(text: str, nan: bool = False) -> Any:
    """Return a JSON value; strict where Python's json is not. nan: accept NaN. Raises RowError as ``parse`` does."""
    try:
        return (_with_nan if nan else _strict).decode(text)
    except RecursionError:
        raise RowError("too-deep", f"is nested more than {MAX_DEPTH} deep") from None
    except RowError:
        raise
    except json.JSONDecodeError as error:
        if "\0" in text:
            raise RowError("nul", "has a NUL byte") from None
        raise _malformed(error) from None
    except _Number as error:
        number = error
    except ValueError:  # Python limits the digits of an integer
        raise RowError("number", "has an integer of more than 4,300 digits") from None
    # The strict decoder knows only the number; parsing again, leniently, finds the field that holds it.
    inspect(_lax(text), nan=nan)
    raise RowError("number", f"has the number {number}")


def _lax(text: str) -> Any:
    """Return the value with NaN and infinities in it; None where Python cannot read it.

    Raises RowError where the text after the bad number, which the strict decoder has not seen, is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(error) from None
    except (ValueError, RecursionError):
        return None


def _malformed(error: json.JSONDecodeError) -> RowError:
    return RowError("malformed-json", f"is no JSON: {error.msg.removesuffix(' at')} at column {error.colno}")


def inspect(value: Any, field: str = "", depth: int = 0, nan: bool = False) -> None:
    """Raise RowError where a value from JSON, CSV, Parquet or the hub holds what no row may hold, naming the field.

    nan: accept NaN.
    """
    if isinstance(value, str):
        if len(value) > MAX_ROW:
            raise RowError("too-long", f"is longer than {MAX_ROW >> 20} Mi characters", field)
        if "\0" in value:
            raise RowError("nul", "has a NUL character", field)
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                what = f"has the lone surrogate {value[error.start]!a} at character {error.start + 1}"
                raise RowError("lone-surrogate", what, field) from None
    elif isinstance(value, float):
        if not (isfinite(value) or (nan and isnan(value))):
            raise RowError("number", f"is {value}", field)
    elif isinstance(value, (dict, list, tuple)):
        if depth >= MAX_DEPTH:
            raise RowError(
                "too-deep", f"is nested more than {MAX_DEPTH} deep", field.partition(".")[0].partition("[")[0]
            )
        if isinstance(value, dict):
            for key, item in value.items():
                inspect(key, f"{field}.{key!a}" if field else f"{key!a}", depth + 1)
                inspect(item, f"{field}.{key}" if field else str(key), depth + 1, nan)
        else:
            for index, item in enumerate(value):
                inspect(item, f"{field}[{index}]", depth + 1, nan)


def describe_type(value: Any) -> str:
    """Return the name of a value's JSON type with its article, for messages: ``a string``."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


class _Number(ValueError):
    """A number that no row may hold: NaN or an infinity."""


def _finite(literal: str) -> float:
    value = float(literal)
    if not isfinite(value):
        raise _Number(literal[:40])
    return value


def _constant(literal: str) -> NoReturn:
    raise _Number(literal)


def _nan(literal: str) -> float:
    return float(literal) if literal == "NaN" else _constant(literal)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RowError("duplicate-key", "is given twice", key)
            seen.add(key)
    return found


_with_nan = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_nan)
_strict = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
