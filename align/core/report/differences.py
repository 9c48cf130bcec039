"""Why two runs differ: settings, data, models and versions, and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from align.core.report.curves import goals
from align.core.report.read import RunFacts, StageFacts, read_run
from align.schemas.errors import AlignError

Kind = Literal["stages", "settings", "data", "model", "versions", "results"]
MOST_SIBLINGS = 500
"""Directories looked at for the run before."""


@dataclass(frozen=True, slots=True)
class RunDifference:
    """One thing in which two runs differ. before, after: its value in the first and in the second run.

    stage: "" for what belongs to the whole run. before or after is None where that run does not have the thing.
    """

    kind: Kind
    stage: str
    name: str
    before: str | None
    after: str | None


def differences(first: RunFacts, second: RunFacts) -> list[RunDifference]:
    """Return all differences of two runs: causes first, results last. Equal runs give an empty list.

    Stages are compared by name; where two runs have no name in common, by position.
    """
    found = [*_of_run(first, second)]
    for before, after in _matched(first, second):
        found += _of_stage(before, after)
    return found


def _of_run(first: RunFacts, second: RunFacts) -> Iterator[RunDifference]:
    names = [", ".join(stage.name for stage in run.stages) for run in (first, second)]
    if names[0] != names[1]:
        yield RunDifference("stages", "", "stages", *names)
    sides = [{**run.manifest.get("versions", {}), "python": run.manifest.get("python")} for run in (first, second)]
    for name, before, after in _unequal(*sides):
        yield RunDifference("versions", "", name, before, after)


def _matched(first: RunFacts, second: RunFacts) -> list[tuple[StageFacts, StageFacts]]:
    by_name = {stage.name: stage for stage in second.stages}
    named = [(stage, by_name[stage.name]) for stage in first.stages if stage.name in by_name]
    return named or list(zip(first.stages, second.stages, strict=False))


def _of_stage(first: StageFacts, second: StageFacts) -> Iterator[RunDifference]:
    name = second.name
    for key, before, after in _unequal(*(dict(leaves(stage.settings)) for stage in (first, second))):
        yield RunDifference("settings", name, key, before, after)
    for key, before, after in _unequal(*({"rows": stage.noted.get("data")} for stage in (first, second))):
        yield RunDifference("data", name, key, _short(before), _short(after))
    for key, before, after in _unequal(*(dict(_files(stage)) for stage in (first, second))):
        yield RunDifference("data", name, key, _short(before), _short(after))
    for key, before, after in _unequal(*(dict(_inputs(stage)) for stage in (first, second))):
        yield RunDifference("model", name, key, _short(before), _short(after))
    sides = [{curve.name: curve.ends[1] for curve in goals(stage)} for stage in (first, second)]
    for key, before, after in _unequal(*sides):
        yield RunDifference("results", name, f"held-out {key}", before, after)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every leaf of nested mappings and of lists of mappings (sources, rewards)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for index, each in enumerate(value):
                yield from leaves(each, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", value


def _files(stage: StageFacts) -> Iterator[tuple[str, str]]:
    """Yield the content of every file that rows came from, by name: a moved file is the same one."""
    for source in stage.data.get("sources", []):
        for file in source.get("files", []):
            yield Path(file["path"]).name, file["sha256"]


def _inputs(stage: StageFacts) -> Iterator[tuple[str, str]]:
    for setting, files in stage.noted.get("inputs", {}).items():
        for file, content in files.items():
            if content:
                yield f"{setting}: {file}" if file else setting, content


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    for key in [*first, *(key for key in second if key not in first)]:
        if first.get(key) != second.get(key):
            yield key, _written(first.get(key)), _written(second.get(key))


def _written(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(digest: str | None) -> str | None:
    return digest[:12] if digest else None


def run_before(run: RunFacts) -> RunFacts | None:
    """Return the run next to this one that was started last before it; None where there is none."""
    started = _started(run)
    here = run.directory.resolve()
    if started is None:
        return None
    before: list[tuple[datetime, Path]] = []
    for file in islice(here.parent.glob("*/run.yaml"), MOST_SIBLINGS):
        if file.parent.resolve() == here:
            continue
        try:
            then = _started(read_run(file.parent, curves=False))
        except AlignError:  # damaged, or no run
            continue
        if then is not None and then < started:
            before.append((then, file.parent))
    return read_run(max(before)[1]) if before else None


def _started(run: RunFacts) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(run.manifest.get("started")))
    except ValueError:
        return None
    return found if found.tzinfo else None
