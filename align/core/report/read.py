"""A run directory as plain data: what was asked, what was measured while training and after."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core import strictyaml
from align.core.evaluate.evaluation import Evaluation
from align.schemas.errors import AlignError

Points = list[tuple[float, float]]
"""(step, value), in the order of the steps."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage of the run."""

    name: str
    settings: Mapping[str, Any]
    """Its part of ``run.yaml``."""
    noted: Mapping[str, Any]
    """Its part of ``manifest.json``."""
    sources: list[Mapping[str, Any]]
    """What ``data_report.json`` says was read."""
    curves: Mapping[str, Points]
    """Metric -> its course; held-out ones start with ``val/``."""
    finished: bool


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A whole run."""

    name: str
    stages: list[StageFacts]
    manifest: Mapping[str, Any]
    evaluation: Evaluation


def read_run(directory: Path) -> RunFacts:
    """Everything the report shows. Stages that have not begun are left out.

    Raises AlignError where ``directory`` is not a run's.
    """
    try:
        run = strictyaml.read((directory / "run.yaml").read_text(encoding="utf-8"), str(directory / "run.yaml")).values
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AlignError(f"has no {Path(error.filename).name}", "give a run's directory", where=str(directory)) from None
    stages = [_stage(directory / stage["name"], stage, manifest) for stage in run["stages"]]
    begun = [stage for stage in stages if stage.curves]
    return RunFacts(directory.resolve().name, begun, manifest, Evaluation.load(directory))


def _stage(directory: Path, settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> StageFacts:
    report = directory / "data_report.json"
    return StageFacts(
        name=settings["name"],
        settings=settings,
        noted=manifest["stages"].get(settings["name"], {}),
        sources=json.loads(report.read_text(encoding="utf-8"))["sources"] if report.is_file() else [],
        curves=_curves(directory / "metrics.csv"),
        finished=(directory / "done.json").is_file(),
    )


def _curves(path: Path) -> dict[str, Points]:
    """Every column that holds finite numbers."""
    curves: dict[str, Points] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name not in (None, "step", "epoch") and text and math.isfinite(value := float(text)):
                    curves.setdefault(name, []).append((float(row["step"]), value))
    return curves
