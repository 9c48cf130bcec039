"""Earlier training and measurements, read from disk: run directories, eval runs and the JSON of gates.

Nothing is believed that its own checksums do not bear out, and nothing is passed over in silence: ``History.unread``
names every file that could not be used.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from align.advisor.estimate.model_shape import shape_of_directory
from align.advisor.precedents import History, ModelScore, PastStage
from align.advisor.predicates import DATA_OF, METHOD
from align.core.evaluation.store import MANIFEST, ROWS, read_summary, weights_sum
from align.core.report.gate_view import GateUnit, GateView
from align.core.report.read import RunFacts, StageFacts, read_run
from align.core.util import atomic_files
from align.schemas.advice import PrecedentScore
from align.schemas.errors import AlignError
from align.schemas.project import Project
from align.schemas.text import stripped

DEEPEST = 8
"""Directories below the one that is named, at most."""
MOST_DIRECTORIES = 5_000
"""Directories that are looked at, at most; the history says so where there are more."""
LARGEST_GATE = 256 * 2**20
"""Bytes of a gate's JSON, which holds the items that changed."""
GATE = "gate.json"
"""The gate's report in a stage's directory."""
_GATE_BEGINS = re.compile(rb'\s*\{\s*"outcome"\s*:')

Number = TypeVar("Number", int, float)

Malformed = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError)
"""Raised where JSON has another shape than align writes."""


def read_history(place: str | Path) -> History:
    """Return what was trained and measured under a directory.

    place: a directory with runs in it, one run's directory, or a gate's verdict: ``STAGE/gate.json``, or what ``align
    gate --json`` wrote. A run or verdict that is named itself is the project's own. Raises AlignError where there is no
    such place, or a verdict that is named itself cannot be read.
    """
    root = Path(place).expanduser()
    if root.is_dir():
        found = _Reader(root)
        found.walk(root)
    elif root.is_file():
        found = _Reader(root.parent)
        found.read_verdict(root)
    else:
        raise AlignError("is not there", "name a directory of runs, a run, or a gate's JSON", where=str(place))
    return found.history()


@dataclass(frozen=True, slots=True)
class _Measured:
    """An eval run. sum: of the weights that it measured, None for a server's."""

    directory: Path
    scores: tuple[ModelScore, ...]
    sum: str | None


@dataclass(frozen=True, slots=True)
class _Trained:
    """A finished stage, without a gate's verdict. sum: of its export's weights."""

    past: PastStage
    facts: StageFacts
    sum: str


@dataclass
class _Reader:
    """The findings so far; names are relative to ``root``."""

    root: Path
    runs: dict[Path, RunFacts] = field(default_factory=dict)
    trained: list[_Trained] = field(default_factory=list)
    evals: list[_Measured] = field(default_factory=list)
    verdicts: list[PastStage] = field(default_factory=list)
    gates: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    own: Path | None = None
    named: Path | None = None
    judged: PastStage | None = None
    seen: int = 0

    # Walking

    def walk(self, directory: Path, depth: int = 0) -> None:
        """Read what is in a directory and below; links are not followed."""
        self.seen += 1
        if self.seen > MOST_DIRECTORIES or depth > DEEPEST:
            limit = f"{MOST_DIRECTORIES:,} directories" if self.seen > MOST_DIRECTORIES else f"{DEEPEST} levels"
            note = f"history: only the first {limit} of {self.root} were looked at; name a directory further down"
            self.unread += [note] * (note not in self.unread)
            return
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            self._unread(directory, f"cannot be read: {error.strerror}")
            return
        inner = [name for name in inner if not name.startswith(".")]
        if {MANIFEST, ROWS} <= files:
            self.read_evals(directory)
            return
        if "run.yaml" in files and (MANIFEST in files or _holds_stages(directory, inner)):
            if depth == 0:
                self.own = directory
            stages = self.read_run(directory)
            for name in stages:
                self._read_gate_evals(directory / name)
            inner = [name for name in inner if name not in stages]
        else:
            self.gates += [directory / name for name in sorted(files) if self._is_gate(directory / name)]
        for name in inner:
            self.walk(directory / name, depth + 1)

    def _read_gate_evals(self, stage: Path) -> None:
        for side in ("baseline", "candidate"):
            if (stage / "gate" / side / MANIFEST).is_file():
                self.read_evals(stage / "gate" / side)

    def _is_gate(self, path: Path) -> bool:
        if path.suffix != ".json":
            return False
        try:
            with open(path, "rb") as file:
                return _GATE_BEGINS.match(file.read(200)) is not None
        except OSError as error:
            self._unread(path, f"cannot be read: {error.strerror}")
            return False

    # Reading

    def read_evals(self, directory: Path) -> None:
        """Keep an eval run; name one that is incomplete or damaged."""
        if any(each.directory.resolve() == directory.resolve() for each in self.evals):
            return
        try:
            manifest, metrics = read_summary(directory)
            model = manifest["identity"]["model"]
            scores = tuple(_scores(manifest, metrics, self._name(directory)))
            found = _Measured(directory, scores, model.get("weights"))
        except AlignError as error:
            self._unread(directory, error.problems[0].what)
        except Malformed:
            self._unread(directory, "is not what an eval run wrote")
        else:
            self.evals.append(found)

    def read_run(self, directory: Path) -> list[str]:
        """Keep a run's finished stages and their verdicts; return the names of all its stages."""
        if directory.resolve() in self.runs:
            return [stage.name for stage in self.runs[directory.resolve()].stages]
        damaged: dict[Path, str] = {}
        try:
            run = read_run(directory, damaged=damaged.setdefault)
            names = [stage.name for stage in run.stages]
        except AlignError as error:
            self._unread(directory, error.problems[0].what)
            return []
        except Malformed:
            self._unread(directory, "is not what a run wrote")
            return []
        for path, why in damaged.items():
            self._unread(path, f"is damaged: {why}")
        if directory / MANIFEST in damaged:
            return names
        if not (directory / MANIFEST).is_file():
            self._unread(directory, f"has no {MANIFEST}, so that its files cannot be verified")
            return names
        try:
            _project(run)
        except ValueError:
            self._unread(directory, "has a project: that does not fit the form")
            return names
        self.runs[directory.resolve()] = run
        for stage in run.stages:
            if any(path.parent == stage.directory for path in damaged):
                continue
            if not stage.finished:
                if (stage.directory / "stage.json").is_file():
                    self._unread(stage.directory, "is not finished")
                continue
            try:
                self._keep(run, stage)
            except AlignError as error:
                self._unread(stage.directory, error.problems[0].what)
            except Malformed:
                self._unread(stage.directory, "is not what a run wrote")
        return names

    def _keep(self, run: RunFacts, stage: StageFacts) -> None:
        sums = atomic_files.read_json(stage.directory / "done.json")["files"]
        past = _past(run, stage, f"{self._name(run.directory)}/{stage.name}")
        found = _Trained(past, stage, weights_sum({name: each["sha256"] for name, each in sums.items()}))
        self.trained.append(found)
        gate = stage.directory / GATE
        if not gate.is_file():
            return
        try:
            report = atomic_files.read_json(gate)["report"]
            self.verdicts.append(_judged(past, report))
        except AlignError as error:
            self._unread(gate, error.problems[0].what)
        except Malformed:
            self._unread(gate, "is not what a gate wrote")

    def read_verdict(self, path: Path) -> None:
        """Read the verdict that was named, with the run that it is about. Raises AlignError where it cannot be read."""
        self.named = path
        values = self._verdict(path)
        if "report" in values:  # a stage's own
            self.own = path.parent.parent
            self.read_run(self.own)
            self.judged = next((past for past in self.verdicts if past.run.endswith(f"/{path.parent.name}")), None)
            if self.judged is None:
                raise AlignError("its run cannot be read: " + "; ".join(self.unread), where=str(path))
            self._read_gate_evals(path.parent)
            return
        try:
            linked = self.link(path, values)
        except Malformed:
            raise AlignError(
                "is not what a gate wrote", "write it with `align gate ... --json FILE`", where=str(path)
            ) from None
        if not linked:
            model = values["candidate"]["model"]
            raise AlignError(f"the run that trained {model} is not there", "name the run's directory", where=str(path))

    def _verdict(self, path: Path) -> dict[str, Any]:
        """Return a gate's JSON. Raises AlignError for another file."""
        try:
            if path.stat().st_size > LARGEST_GATE:
                raise AlignError(f"has more than {LARGEST_GATE:,} bytes", where=str(path))
            values = json.loads(path.read_bytes())
            report = atomic_files.read_json(path)["report"] if "report" in values else values
            GateView.from_json(report)
            str(report["policy"]["domains"]), str(report["candidate"]["directory"])
        except OSError as error:
            raise AlignError(f"cannot be read: {error.strerror}", where=str(path)) from None
        except (*Malformed, RecursionError):
            fix = "write it with `align gate ... --json FILE`"
            raise AlignError("is not the JSON of a gate", fix, where=str(path)) from None
        return dict(values)

    # Linking verdicts to runs

    def link(self, path: Path, report: Mapping[str, Any]) -> bool:
        """Keep a verdict with the stage whose export it judged; return whether that was found.

        Weights are compared by their hash, where the eval run is still there, and else by the path of the model.
        """
        side = report["candidate"]
        measured = self._eval_run(Path(side["directory"]), path)
        export = next((each for each in _paths(str(side["model"]), path) if each.is_dir()), None)
        if export is not None and (export.parents[1] / "run.yaml").is_file():
            self.read_run(export.parents[1])
        fitting = [each for each in self.trained if measured is not None and each.sum == measured.sum]
        if measured is None and export is not None:
            fitting = [each for each in self.trained if (each.facts.directory / "export").resolve() == export.resolve()]
        if not fitting:
            return False
        chosen = min(fitting, key=lambda each: each.past.run)
        self.verdicts.append(_judged(chosen.past, report))
        if path == self.named:
            self.own, self.judged = chosen.facts.directory.parent, self.verdicts[-1]
        return True

    def _eval_run(self, directory: Path, gate: Path) -> _Measured | None:
        for each in _paths(str(directory), gate):
            if (each / MANIFEST).is_file():
                self.read_evals(each)
                return next((found for found in self.evals if found.directory.resolve() == each.resolve()), None)
        return None

    def history(self) -> History:
        """Return all that was found, in an order that follows from names alone."""
        for path in self.gates:
            try:
                if not self.link(path, self._verdict(path)):
                    self._unread(path, "the run that it judged was not found, so what was trained is not known")
            except AlignError as error:
                self._unread(path, error.problems[0].what)
            except Malformed:
                self._unread(path, "is not what a gate wrote")
        judged = {past.run for past in self.verdicts}
        stages = [*self.verdicts, *(each.past for each in self.trained if each.past.run not in judged)]
        stages = sorted(stages, key=lambda past: (past.run, past.outcome))
        own = self._own()
        if own is not None:
            order = {stage.name: place for place, stage in enumerate(own.stages)}
            mine = [past for past in stages if past.directory == str(own.directory)]
            last = self.judged or max(
                mine, key=lambda past: (bool(past.outcome), order[past.run.rpartition("/")[2]]), default=None
            )
            stages = [replace(past, own=past in mine, judged=past == last) for past in stages]
        scores = [score for each in self.evals for score in each.scores]
        return History(
            tuple(stages),
            tuple(sorted(scores, key=lambda score: (score.place, score.eval))),
            tuple(sorted(self.unread)),
            None if own is None else _project(own),
        )

    def _own(self) -> RunFacts | None:
        return None if self.own is None else self.runs.get(self.own.resolve())

    def _name(self, path: Path) -> str:
        """Return a path relative to the history's root; of the root itself its own name."""
        if path.resolve() == self.root.resolve():
            return stripped(path.resolve().name)
        try:
            return stripped(path.relative_to(self.root).as_posix())
        except ValueError:
            return stripped(str(path))

    def _unread(self, path: Path, why: str) -> None:
        self.unread.append(stripped(f"history: {self._name(path)}: {why}"))


def _holds_stages(directory: Path, inner: Sequence[str]) -> bool:
    """Return whether a directory with a run.yaml is a run's that lost its manifest, and not a place for run files."""
    return any((directory / name / "stage.json").is_file() for name in inner)


def _paths(named: str, gate: Path) -> Iterator[Path]:
    """Yield where a path that a gate's JSON names may lead: from here, and from where the JSON is."""
    yield Path(named)
    yield gate.parent / named


def _past(run: RunFacts, stage: StageFacts, name: str) -> PastStage:
    """Return a finished stage without a verdict."""
    settings = stage.settings
    kind = str(settings["algorithm"]["type"])
    method = METHOD.get(kind, kind)
    adapter = settings["model"].get("adapter")
    sources = [source for source in stage.data.get("sources", ()) if not source.get("held_out")]
    seconds, hardware = stage.noted.get("seconds"), stage.noted.get("hardware") or {}
    devices = int(hardware.get("devices", 1))
    rate = None if kind == "best_of_n" else settings["optimizer"].get("learning_rate")
    cuda = hardware.get("accelerator") == "cuda"
    device = hardware.get("name") or ("GPU" if cuda else "CPU")
    project = _project(run)
    losses = [value for _, value in stage.curves.get("val/loss", ())]
    hours = None if seconds is None else _positive(float(seconds)) / 3600
    return PastStage(
        run=name,
        directory=str(run.directory),
        stage=stripped(method),
        model=stripped(_first_model(run, settings)),
        data=DATA_OF.get(method, "prompts" if stage.from_rewards else "sft_pairs"),
        params_b=_billions(stage.directory / "export", Path(_first_model(run, settings))),
        tuning=_tuning(adapter),
        learning_rate=None if rate is None else float(rate),
        rows=sum(_positive(int(source["rows"])) for source in sources) if sources else None,
        capability=None if project is None else project.behaviour.target_capability or project.task.type,
        held_out=(losses[0], losses[-1]) if len(losses) > 1 else None,
        hours=hours,
        gpu_hours=hours * devices if hours is not None and cuda else None,
        hardware=f"{devices} x {stripped(str(device))}" if seconds is not None else "",
        open_stages=tuple(each.name for each in run.stages if not each.finished),
    )


def _positive(value: Number) -> Number:
    """Return a finite number that is not below 0. Raises ValueError for another."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} is no amount")
    return value


def _first_model(run: RunFacts, settings: Mapping[str, Any]) -> str:
    """Return the model that a stage begins from, through the stages before it."""
    path = str(settings["model"]["path"])
    before = {stage.name: stage.settings for stage in run.stages}
    while path.startswith("stage:") and path.removeprefix("stage:") in before:
        path = str(before.pop(path.removeprefix("stage:"))["model"]["path"])
    return path


def _tuning(adapter: Mapping[str, Any] | None) -> Literal["full", "lora", "qlora"]:
    if adapter is None:
        return "full"
    return "qlora" if adapter.get("quantize") == "nf4" else "lora"


def _billions(*directories: Path) -> float | None:
    """Return the parameters of the first of these that is a model here, in 10^9."""
    for directory in directories:
        if (directory / "config.json").is_file():
            try:
                return shape_of_directory(directory).params / 1e9
            except AlignError:
                continue
    return None


def _project(run: RunFacts) -> Project | None:
    """Return the run's ``project:``; None without one. Raises ValueError for one that does not fit the form."""
    return Project.model_validate(run.project) if run.project else None


def _judged(past: PastStage, report: Mapping[str, Any]) -> PastStage:
    """Return a stage with a gate's verdict on it, from the gate's JSON."""
    view = GateView.from_json(report)
    domains: Mapping[str, Any] = report["policy"]["domains"]
    in_domains = {name for domain in domains.values() for name in domain["evals"]}
    scores = [*(_score(unit, "domain") for unit in view.domains)]
    for unit in view.evals:
        role: Literal["eval", "safety", "watch"] = "safety" if unit.role == "safety" else "watch"
        scores.append(_score(unit, "eval" if unit.name in in_domains else role))
    needed = [unit.rows_needed for unit in (*view.domains, *view.evals) if unit.rows_needed]
    return replace(
        past,
        outcome=stripped(view.verdict),
        blocking=tuple(stripped(str(name)) for name in view.blocking),
        scores=tuple(scores),
        items_needed=max((_positive(int(count)) for count in needed), default=None),
    )


def _score(unit: GateUnit, role: Literal["domain", "eval", "safety", "watch"]) -> PrecedentScore:
    """Return a unit's numbers. Raises ValueError for numbers that are not finite or missing."""
    if not all(map(math.isfinite, (unit.diff, unit.low, unit.high))):
        raise ValueError(f"{unit.name}: its difference has no finite interval")
    return PrecedentScore(
        name=stripped(unit.name),
        role=role,
        verdict=unit.verdict,
        before=unit.baseline,
        after=unit.candidate,
        difference=unit.diff,
        low=unit.low,
        high=unit.high,
        items=unit.rows or 0,
    )


def _scores(
    manifest: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]], place: str
) -> Iterator[ModelScore]:
    """Yield the scores of an eval run that are shares, more of which is better."""
    model = stripped(str(manifest["model"]))
    for name, found in metrics.items():
        of, score = manifest["evals"][name], found.get("score")
        if score is not None and of["higher_is_better"] and of["is_mean"] and 0 <= score <= 1:
            yield ModelScore(model, stripped(name), str(of["type"]), float(score), int(found.get("items", 0)), place)
