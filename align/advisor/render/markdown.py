"""Advice as Markdown, for a pull request or a wiki: text of others is escaped, and quotes are code spans."""

from __future__ import annotations

import re
from collections.abc import Iterator

from align.advisor.render.outline import (
    UNDERSTOOD,
    Item,
    confidence,
    correction,
    footer,
    heading,
    not_stated,
    outline,
    readings,
)
from align.schemas.advice import Advice
from align.schemas.text import visible

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&@!$])")
_LIST = re.compile(r"^(\d*)([-+.)])(?=\s|$)")


def render(advice: Advice) -> str:
    """Return the advice as GitHub-flavoured Markdown."""
    lines = ["# Advice", "", f"## {UNDERSTOOD}", "", *_understood(advice)]
    lines += ["", f"## {_plain(heading(advice))}", "", f"{_plain(advice.summary)} *{confidence(advice)}*"]
    for section in outline(advice):
        lines += ["", f"## {section.title}", ""]
        for item in section.items:
            lines += _item(item)
    return "\n".join([*lines, "", "---", "", _plain(footer(advice)), ""])


def _understood(advice: Advice) -> Iterator[str]:
    """Yield one point for each entry: the fact, its words, and the settings that correct it."""
    for reading in readings(advice):
        for entry in reading.entries:
            words = [f"{_code(quote.quote)} ({_plain(quote.source)})" for quote in entry.quotes]
            settings = [_code(f"--set {setting}") for setting in entry.code]
            yield f"- **{reading.topic}** " + " · ".join([_plain(entry.text), *words, *settings])
    if unknown := not_stated(advice):
        yield f"- **not stated** {unknown}"
    yield from ("", _plain(correction(advice)))


def _item(item: Item) -> list[str]:
    sign = {"error": "❌ ", "warning": "⚠️ ", "good": "✅ ", "plain": ""}[item.tone]
    mark = f"**{_plain(item.mark)}** " if item.mark else ""
    lines = [f"- {sign}{mark}{_plain(item.text)}".rstrip()]
    lines += [f"  - {_code(quote.quote)} ({_plain(quote.source)})" for quote in item.quotes]
    if item.bar is not None:
        parts = [f"{name} {gb:.3g}" for name, gb in item.bar.parts.items() if gb]
        lines += [f"  - {_plain(' · '.join(parts))}"]
    lines += [f"  - {_plain(line)}" for line in item.more]
    return lines + [f"  - {_code(line)}" for line in item.code]


def _plain(text: str) -> str:
    r"""Text that means itself, in one line: ``*`` as ``\*``, and ``1.`` that begins no list as ``1\.``."""
    flat = " ".join(visible(text).split())
    return _LIST.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", flat))


def _code(text: str) -> str:
    """A code span, its fence longer than any run of backticks inside."""
    flat = " ".join(visible(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}" if flat else ""
