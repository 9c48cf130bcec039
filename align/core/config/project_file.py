"""Briefs: what somebody writes about a project, as a form, in free words, or both in one file.

.yaml .yml .json  the form (``align.schemas.project``)
.md .txt          free words, the form as YAML front matter between two lines ``---`` if they begin with one
-                 standard input: the form where it reads as one, else free words
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

from pydantic_core import PydanticSerializationError

from align.core.config import yaml_loader
from align.core.plugin_system.registry import Path, check, dotted, fixes_by_section
from align.schemas.errors import AlignError, Problem
from align.schemas.project import Project

SUFFIXES = (".yaml", ".yml", ".json", ".md", ".txt")
"""Endings of files that hold a brief."""
LARGEST_FORM = 256 * 1024
LARGEST_TEXT = 16 * 1024 * 1024

_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FIXES = fixes_by_section(Project)

Parsed = tuple[Any, Mapping[Path, int], list[Problem]]
"""Plain values, the line of each path, and what is wrong with single ones."""


@dataclass(frozen=True, slots=True)
class Brief:
    """A project as it was written: a form, free words, or both.

    name: the file's, ``standard input`` or ``--text``. text: the free words. places: dotted path of the form -> the
    place in its file. source: all that stood in it. offset: where ``text`` begins in ``source``; None where it does not
    stand there as it is.
    """

    name: str
    project: Project
    text: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    offset: int | None = None


def read(path: str, standard_input: Callable[[], bytes]) -> Brief:
    """Read a brief from a file, or from standard input for ``-``.

    Raises AlignError with every problem of the form, each with its line, and for what cannot be read.
    """
    return _read("standard input", standard_input()) if path == "-" else read_file(path)


def read_file(path: str) -> Brief:
    """Read a brief from a file, of any name. Raises AlignError as ``read`` does."""
    return _read(path, _bytes(path))


def _read(name: str, raw: bytes) -> Brief:
    text = _decoded(raw, name)
    suffix = File(name).suffix.lower()
    if suffix in (".yaml", ".yml", ".json") or (suffix not in (".md", ".txt") and _looks_like_a_form(text)):
        return _form(name, text, _json if suffix == ".json" else _yaml)
    return of_text(text, name)


def of_text(text: str, name: str = "--text") -> Brief:
    """Free words, after the front matter if there is some. Raises AlignError as ``read`` does."""
    text = text.encode("utf-8", "replace").decode()  # a command line may hold bytes that are no text
    front = _FRONT.match(text)
    if front is None:
        return Brief(name, Project(), text, source=text, offset=0)
    form = _form(name, "\n" + front[1], _yaml)  # what stood on line 2 still does
    words = text[front.end() :]
    if form.project.description and words.strip():
        what = "stands beside free words below the front matter"
        raise AlignError(what, "write all of it there", where=form.places["description"] + ": description")
    if not words.strip():
        return form
    return Brief(name, form.project, words, form.places, text, front.end())


def of_values(values: Mapping[str, Any], name: str = "brief") -> Brief:
    """Return the brief that a form's plain values make. Raises AlignError with every problem of the form."""

    def where(path: Path) -> str:
        return f"{name}: {dotted(path)}" if path else name

    try:
        project = check(Project, values, where, lambda: _FIXES)
    except PydanticSerializationError as error:
        what = f"holds a value that no form can hold: {error}"
        raise AlignError(what, "give text, numbers, lists and mappings", where=name) from None
    return Brief(name, project, project.description or "")


def merged(project: Project, values: Mapping[Path, Any], where: str) -> Project:
    """The form with values laid over it, by path. Raises AlignError for those that do not belong there."""
    laid: dict[str, Any] = project.model_dump(exclude_defaults=True)
    for path, value in values.items():
        holder: Any = laid
        for key in path[:-1]:
            holder = holder.setdefault(key, {})
        holder[path[-1]] = value
    return check(Project, laid, lambda path: f"{where}: {dotted(path)}", lambda: _FIXES)


def _form(name: str, text: str, parse: Callable[[str, str], Parsed]) -> Brief:
    """A form alone; its ``description`` is the free words."""
    if len(text) > LARGEST_FORM:
        fix = "write the free words into a .md file, and the form as its front matter"
        raise AlignError(f"has {len(text)} characters; a form has at most {LARGEST_FORM}", fix, where=name)
    values, lines, problems = parse(name, text)
    places = {dotted(path): f"{name} line {line}" for path, line in lines.items()}
    if not isinstance(values, dict | None):
        fix = "start with `description:`, or write free words into a .md or .txt file"
        raise AlignError("is not a mapping of keys to values", fix, where=name)
    if values is not None and "output" in values:
        raise AlignError("is a run file", f"its project: is advised by `align train {name} --check`", where=name)

    def where(path: Path) -> str:
        near = next((place for n in range(len(path), 0, -1) if (place := places.get(dotted(path[:n])))), name)
        return f"{near}: {dotted(path)}" if path else near

    try:
        project = check(Project, values or {}, where, lambda: _FIXES)
    except AlignError as error:
        raise AlignError.gather([*problems, *error.problems]) from None
    if problems:
        raise AlignError.gather(problems)
    words = project.description or ""
    found = text.find(words) if words else -1
    return Brief(name, project, words, places, text, None if found < 0 else found)


def _yaml(name: str, text: str) -> Parsed:
    document = yaml_loader.read(text, name)
    return document.values, document.lines, document.problems


def _json(name: str, text: str) -> Parsed:
    """JSON; its lines where it is YAML as well, which it is but for tabs and some escapes."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n])]:
            raise AlignError(f"has the key {twice[0]!r} twice", "remove one of them", where=name)
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise AlignError(f"is no JSON: {error.msg}", where=f"{name} line {error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise AlignError(f"is no JSON for a form: {error}", where=name) from None
    try:
        return values, yaml_loader.read(text, name).lines, []
    except AlignError:
        return values, {}, []


def _looks_like_a_form(text: str) -> bool:
    """Return True for a mapping with one of the form's keys, and no front matter."""
    if len(text) > LARGEST_FORM or _FRONT.match(text):
        return False
    try:
        values = yaml_loader.read(text, "").values
    except AlignError:
        return text.lstrip()[:1] == "{"
    return isinstance(values, dict) and bool(values.keys() & Project.model_fields.keys())


def text_of(path: str) -> str:
    """A file's text. Raises AlignError where it cannot be read, or is none."""
    return _decoded(_bytes(path), path)


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST_TEXT + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise AlignError(f"cannot be read: {why}", "give the path of a file", where=path) from None


def _decoded(raw: bytes, name: str) -> str:
    if len(raw) > LARGEST_TEXT:
        raise AlignError(f"has more than {LARGEST_TEXT} bytes, the most that is read", "shorten it", where=name)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AlignError("is not UTF-8", "save it as UTF-8", where=f"{name} line {line}") from None
