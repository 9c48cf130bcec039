"""A run directory as plain data: what was asked, and what was measured while training."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.core.config import yaml_loader
from align.core.engine import logger
from align.core.util import atomic_files, profile
from align.core.util.atomic_files import sha256
from align.schemas.errors import AlignError, Problem
from align.schemas.text import concealed


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage of the run."""

    name: str
    directory: Path
    settings: Mapping[str, Any]
    """Its part of ``run.yaml``."""
    noted: Mapping[str, Any]
    """Its part of ``manifest.json``."""
    data: Mapping[str, Any]
    """The content of ``data_report.json``: what was read."""
    curves: Mapping[str, list[tuple[float, float]]]
    """Metric -> (step, value), which may be NaN; held-out ones start with ``val/``."""
    finished: bool
    profile: Mapping[str, Any] = field(default_factory=dict)
    """The content of ``profile.json`` (``align train --profile``)."""

    @property
    def from_rewards(self) -> bool:
        """Return whether it samples completions and scores them."""
        return bool(self.settings.get("rollout"))

    @property
    def state(self) -> str:
        """Return ``finished``, ``unfinished`` or ``not begun``."""
        return "finished" if self.finished else "unfinished" if self.curves else "not begun"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A whole run."""

    directory: Path
    stages: list[StageFacts]
    manifest: Mapping[str, Any]
    advice: Mapping[str, Any]
    """``advice.json``, of a run with a ``project:``."""
    project: Mapping[str, Any] = field(default_factory=dict)
    """The ``project:`` of ``run.yaml``; empty without one."""


Damage = Callable[[Path, str], object]
"""Called with a file that is not what was written, and why; it is then left out."""


def _warn(path: Path, why: str) -> None:
    print(Problem(str(path), f"is damaged: {why}", "the report is made without it"), file=sys.stderr)


def read_run(directory: Path, *, curves: bool = True, damaged: Damage = _warn) -> RunFacts:
    """Return everything the report shows; a stage that has not begun has no curves.

    curves: False leaves them unread, for a look at what a run is. damaged: by default prints a warning. Raises
    AlignError where ``directory`` is not a run's.
    """
    file = directory / "run.yaml"
    if not file.is_file():
        raise AlignError("has no run.yaml", "give a run's directory", where=str(directory))
    manifest = _json(directory / "manifest.json", damaged) or {}
    sums = manifest.get("files", {})
    try:
        if not _matches(file, sums):
            raise ValueError("is not what the run wrote")
        document = yaml_loader.read(file.read_text(encoding="utf-8"), str(file))
    except ValueError as error:
        fix = "start the run again with its own run file and --resume: that writes it once more"
        raise AlignError(str(error), fix, where=str(file)) from None
    if document.problems:
        raise AlignError.gather(document.problems)
    run = document.values
    if outside := [stage["name"] for stage in run["stages"] if Path(stage["name"]).name != stage["name"]]:
        raise AlignError(f"has a stage named {outside[0]!r}, which is no name of a directory", where=str(file))
    stages = [_stage(directory / stage["name"], stage, manifest, curves, damaged) for stage in run["stages"]]
    advice = _read_recorded(directory / "advice.json", sums, damaged)
    return RunFacts(directory, stages, manifest, advice, run.get("project") or {})


def _stage(
    directory: Path, settings: Mapping[str, Any], manifest: Mapping[str, Any], curves: bool, damaged: Damage
) -> StageFacts:
    done = _json(directory / "done.json", damaged)
    noted = manifest.get("stages", {}).get(settings["name"], {})
    return StageFacts(
        name=settings["name"],
        directory=directory,
        settings=concealed(settings),
        noted=noted,
        data=_read_recorded(directory / "data_report.json", noted.get("files", {}), damaged),
        curves=_curves(directory / "metrics.csv", *_recorded_sum(directory, done or {}), damaged) if curves else {},
        finished=done is not None,
        profile=_json(directory / profile.FILE, damaged) or {},
    )


def _json(path: Path, damaged: Damage) -> Mapping[str, Any] | None:
    """Return a file's content; None where it does not exist yet, or is damaged."""
    try:
        return atomic_files.read_json(path, must=False)
    except FileNotFoundError:
        return None
    except atomic_files.Damaged as error:
        damaged(path, error.why)
        return None


def _matches(path: Path, sums: Mapping[str, str]) -> bool:
    """Return whether a file has the checksum that was recorded for it; true where none was."""
    return path.name not in sums or sha256(path) == sums[path.name]


def _read_recorded(path: Path, sums: Mapping[str, str], damaged: Damage) -> Mapping[str, Any]:
    """Read a file that does not hold its own checksum: a manifest records it. Empty where there is none."""
    if path.is_file() and not _matches(path, sums):
        damaged(path, "it is not what the run wrote")
        return {}
    return _json(path, damaged) or {}


def _recorded_sum(stage: Path, done: Mapping[str, Any]) -> tuple[str | None, float]:
    """Return the recorded checksum of ``metrics.csv``, and the last step that it covers; None where there is none.

    A finished stage records it at its end, an unfinished one with each checkpoint.
    """
    if "csv" in done.get("logs", {}):
        return done["logs"]["csv"], math.inf
    for path in sorted(stage.glob("checkpoints/step-*/MANIFEST.json"), reverse=True):
        with suppress(atomic_files.Damaged):
            facts = atomic_files.read_json(path)
            return facts["logs"].get("csv"), int(facts["name"].partition("-")[2])
    return None, math.inf


def _curves(path: Path, recorded: str | None, last: float, damaged: Damage) -> dict[str, list[tuple[float, float]]]:
    """Return every column of numbers; none of a damaged file."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return curves
    try:
        rows = logger.read_rows(path)
        covered = (row for row in rows if int(row["step"]) <= last)  # a run that goes on writes rows after it
        if recorded is not None and logger.chain_rows(covered) != recorded:
            raise ValueError("its rows are not those that were written")
        for row in rows:
            for name, text in row.items():
                if name not in ("step", "epoch") and text:
                    curves.setdefault(name, []).append((float(row["step"]), float(text)))
    except ValueError as error:
        damaged(path, str(error))
        return {}
    return curves
