"""One line of JSON to one row, and nothing that a later step could choke on gets through.

The common case is quick: the text is parsed once, and walked only where its bytes hold something suspicious.
"""

from __future__ import annotations

import json
import re
from math import isfinite, isnan
from typing import Any, NoReturn

from align.core.data.row_errors import RowError, not_utf8

MAX_ROW = 16 * 2**20
"""Longest row (bytes of a line) and longest string in it: about four million tokens."""
MAX_DEPTH = 64
"""Deepest nesting of a row."""

_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class HasNaN(dict[str, Any]):
    """A row with NaN somewhere, which pandas writes for a missing value: accepted in columns that are not read."""


def without_nan(value: Any) -> Any:
    """Return the value with null for every NaN in it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row, as a ``HasNaN`` where it holds NaN. Raises RowError for all else that ``inspect`` finds."""
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
        raise RowError("wrong-type", f"is {a(row)}, not an object")
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
    except ValueError:  # Python's limit on the digits of an int
        raise RowError("number", "has an integer of more than 4,300 digits") from None
    inspect(_lax(text), nan=nan)  # to name the field
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


def a(value: Any) -> str:
    """A value's type in JSON's words, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


class _Number(ValueError):
    pass


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
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("duplicate-key", "is given twice", twice)
    return found


_with_nan = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_nan)
_strict = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
