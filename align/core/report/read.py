"""A run directory as plain data: what was asked, and what was measured while training."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core import strictyaml
from align.schemas.errors import AlignError


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage of the run."""

    name: str
    settings: Mapping[str, Any]
    """Its part of ``run.yaml``."""
    noted: Mapping[str, Any]
    """Its part of ``manifest.json``."""
    data: Mapping[str, Any]
    """What ``data_report.json`` says was read."""
    curves: Mapping[str, list[tuple[float, float]]]
    """Metric -> (step, value), which may be NaN; held-out ones start with ``val/``."""
    finished: bool


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A whole run."""

    directory: Path
    stages: list[StageFacts]
    manifest: Mapping[str, Any]
    advice: Mapping[str, Any]
    """``advice.json``, of a run with a ``project:``."""


def read_run(directory: Path) -> RunFacts:
    """Everything the report shows; a stage that has not begun has no curves.

    Raises AlignError where ``directory`` is not a run's.
    """
    try:
        file = directory / "run.yaml"
        document = strictyaml.read(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise AlignError("has no run.yaml", "give a run's directory", where=str(directory)) from None
    if document.problems:
        raise AlignError.gather(document.problems)
    run = document.values
    if outside := [stage["name"] for stage in run["stages"] if Path(stage["name"]).name != stage["name"]]:
        raise AlignError(f"has a stage named {outside[0]!r}, which is no name of a directory", where=str(file))
    manifest = _json(directory / "manifest.json")
    stages = [_stage(directory / stage["name"], stage, manifest) for stage in run["stages"]]
    return RunFacts(directory, stages, manifest, _json(directory / "advice.json"))


def _stage(directory: Path, settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> StageFacts:
    return StageFacts(
        name=settings["name"],
        settings=settings,
        noted=manifest.get("stages", {}).get(settings["name"], {}),
        data=_json(directory / "data_report.json"),
        curves=_curves(directory / "metrics.csv"),
        finished=(directory / "done.json").is_file(),
    )


def _json(path: Path) -> Mapping[str, Any]:
    """Empty where there is no such file yet."""
    if not path.is_file():
        return {}
    read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Every column of numbers. Half a line, left by a kill, is left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return curves
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    for row in csv.DictReader(whole.splitlines()):
        for name, text in row.items():
            if name not in (None, "step", "epoch") and text:
                curves.setdefault(name, []).append((float(row["step"]), float(text)))
    return curves
