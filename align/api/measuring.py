"""Measuring what a brief speaks of: its model on its rows, kept in its form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from align.core.projectfile import Brief
from align.schemas.errors import AlignError, Problem
from align.schemas.project import DataKind, Measured
from align.schemas.rollout import RewardChoice

if TYPE_CHECKING:
    from align.core.measure.probes import Settings


@dataclass(frozen=True, slots=True)
class Wish:
    """A requested measurement. files: as ``--data`` names them, ``FILE`` or ``KIND=FILE``; none: the form's own.

    model: a directory or hub id; None: the form's. The rest is as for ``align.core.measure.take``.
    """

    model: str | None
    files: Sequence[str]
    rewards: Sequence[RewardChoice] = ()
    reference: str | None = None
    chat: bool | None = None


def measured(brief: Brief, wish: Wish, settings: Settings, tell: Callable[[str], None]) -> Brief:
    """The brief with what probes find in its form, over what was measured before.

    Raises AlignError where no model or no data is named, and as ``take`` does.
    """
    from align.core.measure.take import take  # it imports torch

    model = wish.model or brief.project.model.name
    files = [_path(word) for word in wish.files] or _files(brief)
    problems = []
    if model is None:
        problems.append(Problem("--measure", "no model is named", "add --model DIR, or model: {name: DIR} to the form"))
    if not files:
        problems.append(Problem("--measure", "no data file is named", "add --data FILE, or a path to the form's data"))
    if model is None or problems:
        raise AlignError.gather(problems)
    found = take(
        model,
        files,
        settings,
        rewards=wish.rewards,
        reference=wish.reference,
        chat=wish.chat,
        tell=tell,
    )
    values = brief.project.measured.model_dump(exclude_none=True) | found.model_dump(exclude_none=True)
    project = brief.project.model_copy(update={"measured": Measured.model_validate(values)})
    return replace(brief, project=project)


def _files(brief: Brief) -> list[str]:
    paths = [data.path for data in brief.project.data or () if data.path]
    return [path for path in paths if Path(path).expanduser().exists()]


def _path(word: str) -> str:
    kind, equals, path = word.partition("=")
    return path if equals and kind in get_args(DataKind) and not Path(word).exists() else word
