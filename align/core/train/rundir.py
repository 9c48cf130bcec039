"""The run directory: what a run is, what has been done, and what may go on.

run.yaml  manifest.json  .lock
STAGE/  stage.json  metrics.csv  data_report.json  checkpoints/  export/  done.json
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from align.core import disk, runfile
from align.core.rollout.score import decisive
from align.core.train import checkpoint
from align.schemas.errors import AlignError
from align.schemas.results import StageResult
from align.schemas.run import Override, Run, Stage

ROWS = "rows.jsonl"
"""What a stage that makes rows leaves in its export."""

_SPEED_ONLY = ("devices", "loggers", "checkpoint")
_SPEED_ONLY_TRAIN = ("micro_batch_tokens", "micro_batch_size", "layout")
_SPEED_ONLY_DATA = ("workers",)
_SPEED_ONLY_ROLLOUT = ("watch", "samples", "show", "sync_tolerance")


def what_is_learned(stage: Stage) -> dict[str, Any]:
    """The settings that decide the weights: all but those that change speed, memory or bookkeeping only."""
    facts = stage.model_dump(mode="json", exclude=set(_SPEED_ONLY))
    for key in _SPEED_ONLY_TRAIN:
        facts["train"].pop(key)
    for key in _SPEED_ONLY_DATA:
        facts["data"].pop(key)
    if stage.rollout is not None:
        facts["rollout"]["rewards"] = [decisive(choice) for choice in stage.rollout.rewards]
        for key in _SPEED_ONLY_ROLLOUT:
            facts["rollout"].pop(key)
        facts["rollout"]["generator"] = stage.rollout.generator.type
        facts["rollout"]["gold"] = stage.rollout.gold and decisive(stage.rollout.gold)
    return facts


def located(stage: Stage, export_of: Callable[[str, bool], str]) -> Stage:
    """The stage with every ``stage:NAME`` replaced by ``export_of(NAME, whether rows are meant)``."""

    def walk(value: Any, rows: bool) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner, rows) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, rows) for inner in value]
        kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
        return export_of(name, rows) if kind == "stage" else value

    plain = stage.model_dump()
    return Stage.model_validate({key: walk(value, key == "data") for key, value in plain.items()})


def digest(value: Any) -> str:
    """sha256 of a plain value, or of one that holds dates and the like, by what they print."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class StageDirectory:
    """One stage's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"

    def result(self) -> StageResult | None:
        """The finished stage, or None."""
        try:
            metrics = json.loads((self.path / "done.json").read_bytes())["metrics"]
        except FileNotFoundError:
            return None
        return StageResult(self.path.name, self.path, self.export, metrics)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Mark the stage as finished; the last thing written."""
        disk.write_whole(self.path / "done.json", json.dumps({"metrics": metrics}, indent=1).encode())

    def check(self, stage: Stage, resume: bool) -> None:
        """Raise AlignError where another stage is here, or an interrupted one and ``resume`` is not set."""
        before = self._noted()
        changed = [] if before is None else _differences(before, what_is_learned(stage))
        started = self.result() is not None or bool(checkpoint.steps(self.checkpoints))
        if started and changed:
            raise AlignError(
                "holds a stage that was started with other settings: " + "; ".join(changed),
                "choose another output, or put the settings back",
                where=str(self.path),
            )
        if started and not resume and self.result() is None:
            raise AlignError(
                f"holds an interrupted run, saved after step {checkpoint.last_step(self.checkpoints)}",
                "add --resume to go on, or choose another output",
                where=str(self.path),
            )

    def begin(self, stage: Stage) -> None:
        """Note what the stage is, and clear away what a killed process left half-written."""
        checkpoint.tidy(self.checkpoints)
        disk.write_whole(self.path / "stage.json", json.dumps(what_is_learned(stage), indent=1).encode())

    def _noted(self) -> dict[str, Any] | None:
        try:
            noted: dict[str, Any] = json.loads((self.path / "stage.json").read_bytes())
        except FileNotFoundError:
            return None
        return noted


class RunDirectory:
    """The whole run's place; open it with ``with`` to keep others out."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = Path(run.output)
        self._lock = FileLock(self.path / ".lock")

    def stage(self, name: str) -> StageDirectory:
        """One stage's place."""
        return StageDirectory(self.path / name)

    def export_of(self, name: str, rows: bool) -> str:
        """What an earlier stage hands on: its model, or the rows that it made."""
        export = self.stage(name).export
        return str(export / ROWS if rows else export)

    def __enter__(self) -> RunDirectory:
        held = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        if "run.yaml" not in held and any(name != ".lock" and not name.startswith(disk.PARTIAL) for name in held):
            raise AlignError("holds something else than a run", "choose another output", where=str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AlignError(
                "another process is running in it", "wait for it, or choose another output", where=str(self.path)
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def begin(self, resume: bool) -> None:
        """Check every stage, then write ``run.yaml`` and open the manifest."""
        for stage in self.run.stages:
            self.stage(stage.name).check(stage, resume)
        checkpoint.tidy(self.path)
        disk.write_whole(self.path / "run.yaml", runfile.dump(self.run).encode())  # first: it marks the directory
        for stage in self.run.stages:
            self.stage(stage.name).begin(stage)
        self.note(
            versions={name: _version(name) for name in ("align-llm", "torch", "lightning", "transformers", "peft")},
            python=platform.python_version(),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            overrides=[override.model_dump() for override in self.run.overrides],
        )

    def note(self, stage: str | None = None, **facts: Any) -> None:
        """Add facts to ``manifest.json``, of the run or of one stage."""
        path = self.path / "manifest.json"
        manifest: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"stages": {}}
        (manifest if stage is None else manifest["stages"].setdefault(stage, {})).update(facts)
        disk.write_whole(path, json.dumps(manifest, indent=1).encode())


def remembered(run: Run) -> Run:
    """The run with the overrides that its directory has recorded: what has been answered once is not asked again."""
    manifest = Path(run.output) / "manifest.json"
    if run.project is None or not manifest.is_file():
        return run
    noted = json.loads(manifest.read_bytes()).get("overrides", [])
    given = {override.rule for override in run.overrides}
    kept = [override for override in map(Override.model_validate, noted) if override.rule not in given]
    return run.model_copy(update={"overrides": [*run.overrides, *kept]})


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``train.batch_size was 8, is 16`` for every leaf that differs."""
    found: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, is {new!r}")
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
