"""Judges of known behaviour for the judged evals, and writing their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.schemas.records import Content
from align.testing import ScriptedModel


def write_jsonl(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def user(prompt: Content) -> str:
    """The last message of a prompt."""
    assert not isinstance(prompt, str)
    return str(prompt[-1]["content"])


def judge(verdict: Callable[[str], str]) -> ScriptedModel:
    """A judge whose verdict follows from its prompt's last message."""
    return ScriptedModel(lambda prompt, _seed: verdict(user(prompt)), name="judge")


def always(text: str) -> ScriptedModel:
    """A model or judge with one answer to everything."""
    return ScriptedModel(lambda _prompt, _seed: text)


def prefers(marked: str, labels: tuple[str, str, str]) -> ScriptedModel:
    """A judge that prefers the answer with ``marked`` in it; labels: first better, second better, neither.

    The first answer is the one that stands before the second in the prompt: both are marked ``<model>`` or ``<base>``.
    """

    def verdict(text: str) -> str:
        first = "<model>" if text.find("<model>") < text.find("<base>") else "<base>"
        return labels[0] if first == marked else labels[1]

    return judge(verdict)
