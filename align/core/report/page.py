"""The report's page: run directories, measures, a gate and samples in; one self-contained HTML file out."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.core.report import chart as charts
from align.core.report.curves import Curve, as_data, better, curves_of, goals, main_curves
from align.core.report.differences import differences, run_before
from align.core.report.facts import chosen, facts, plan
from align.core.report.gate_view import GateUnit, GateView
from align.core.report.read import RunFacts, StageFacts, read_run
from align.core.report.samples import before_and_after, samples_of
from align.core.report.table import Figure, MeasureRow, MeasureTable, PromptSample
from align.core.util.atomic_files import Damaged, read_json, write_atomic
from align.schemas.errors import AlignError, Problem
from align.schemas.html_template import html, json_data
from align.schemas.text import number

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
"""The style sheet of every page that the engine writes."""
SCRIPT = HERE / "report.js"
MOST_RUNS = 6
"""Runs on one page: as many as there are colours that a reader can distinguish."""
VERDICTS = {
    "pass": ("good", "No domain got worse by more than its margin."),
    "regressed": ("bad", "The candidate got worse."),
    "inconclusive": ("", "The data cannot tell whether the candidate got worse by more than a margin."),
    "refused": ("", "The data cannot support a margin of the policy."),
    "invalid": ("", "The two runs cannot be compared."),
}
"""Colour and sentence of a gate's verdict."""
LEAST_SHARE = 0.005
"""Share of a stage's time below which a part is not named."""
PLOT = 260
"""Width of the forest plot."""


def write_report(
    run_directory: Path | Sequence[Path],
    path: Path,
    *,
    title: str | None = None,
    table: MeasureTable | None = None,
    samples: Sequence[PromptSample] = (),
    gate: GateView | None = None,
) -> None:
    """Write the page of a run, or of several, to ``path``, whole or not at all.

    title: the page's heading; the directories' names unless given. table, samples: measures and completions of every
    stage, where somebody took them. gate: a gate's result, shown first. Raises AlignError where a directory is no
    run's, and for more than ``MOST_RUNS``.
    """
    directories = [run_directory] if isinstance(run_directory, Path) else list(run_directory)
    page = render(directories, title, table=table, samples=samples, gate=gate)
    write_atomic(path, page.encode())


def render(
    directories: Sequence[Path],
    title: str | None = None,
    *,
    table: MeasureTable | None = None,
    samples: Sequence[PromptSample] = (),
    gate: GateView | None = None,
    live: str = "",
) -> str:
    """Return the page as text. live: the version of a page that is served, and follows its run.

    Without a run it is the page of the gate alone; a run's own gate is shown unless another one is given.
    """
    if len(directories) > MOST_RUNS:
        fix = f"name up to {MOST_RUNS}, or write several reports"
        raise AlignError(f"{len(directories)} runs are too many for one page", fix, where="report")
    runs = [read_run(directory) for directory in directories]
    names = run_names(directories)
    stored = samples_of(runs)
    stored.data["runs"] = names
    stages = _stages(runs)
    if gate is None and runs:
        gate = _own_gate(runs[-1])
    last = run_before(runs[0]) if len(runs) == 1 else None
    pairs = [(runs[0], run) for run in runs[1:]] if last is None else [(last, runs[0])]
    flips = [asdict(flip) for flip in gate.flips] if gate else []
    return html(
        HERE / "page.html",
        STYLE,
        SCRIPT,
        title=title or " and ".join(names) or "Gate",
        runs=runs,
        names=names,
        stages=stages,
        headlines=list(_headlines(runs[-1])) if runs and (table is None or not table.rows) else [],
        table=table if table and table.rows else None,
        rows=[(row, list(zip(row.figures, _bars(row), strict=True))) for row in table.rows] if table else [],
        samples=[*samples, *(before_and_after(runs[-1]) if runs else [])],
        stored=stored,
        gate=gate,
        verdict=VERDICTS.get(gate.verdict, ("", "")) if gate else ("", ""),
        forest=_forests(gate) if gate else [],
        zero=_across(0.0, gate.scale) if gate else 0,
        plot=PLOT,
        warnings=[
            each
            for run, name in zip(runs, names, strict=True)
            for each in _warnings(run, name if len(runs) > 1 else "")
        ],
        times=[
            (name, stage.name, time)
            for name, run in zip(names, runs, strict=True)
            for stage in run.stages
            if (time := _time(stage))
        ],
        plans=[(name, [_plan(stage) for stage in run.stages]) for run, name in zip(runs, names, strict=True)],
        compared=[(str(one.directory), str(two.directory), differences(one, two)) for one, two in pairs],
        with_last=last is not None,
        commands=list(_commands(runs[-1])) if runs else [],
        curves_data=json_data({"runs": names, "stages": [stage["data"] for stage in stages]}),
        samples_data=json_data(stored.data),
        flips_data=json_data(flips),
        flipped=sorted({flip["eval"] for flip in flips}),
        live=live,
        number=number,
    )


def _own_gate(run: RunFacts) -> GateView | None:
    """Return the gate of the last stage that has passed or failed one; a damaged file is left out with a warning."""
    for stage in reversed(run.stages):
        path = run.directory / stage.name / "gate.json"
        if path.is_file():
            try:
                return GateView.from_json(read_json(path)["report"])
            except (Damaged, KeyError, TypeError, AttributeError):
                what = "the report is made without it"
                print(Problem(str(path), "is not what a gate wrote", what, level="warning"), file=sys.stderr)
    return None


def run_names(directories: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell directories apart; equal directories share a name."""
    if not directories:
        return []
    parts = [directory.resolve().parts for directory in directories]
    shortest = 2 if any(path[-1:] == ("run",) for path in parts) else 1
    for length in range(shortest, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _stages(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """Return the stages of the page: those of all runs, by name, in the order of the first run that has them."""
    names = dict.fromkeys(stage.name for run in runs for stage in run.stages)
    found = []
    for name in names:
        own = [(i, stage) for i, run in enumerate(runs) for stage in run.stages if stage.name == name]
        curves = [(i, curves_of(stage)) for i, stage in own]
        found.append(
            {
                "name": name,
                "states": [stage.state for _, stage in own],
                "data": as_data(own),
                "curves": dict(curves),
                "facts": [(i, list(facts(stage)), chosen(stage), list(_hashes(stage))) for i, stage in own],
                "held_out": [(i, curve) for i, stage in own for curve in goals(stage)],
            }
        )
    return found


@dataclass(frozen=True, slots=True)
class Headline:
    """One measure of a stage, before and after."""

    stage: str
    title: str
    before: str
    after: str
    verdict: str
    note: str


def _headlines(run: RunFacts) -> Iterator[Headline]:
    """Yield what each stage improved, on held-out rows where there are some: the last stage first."""
    for stage in reversed(run.stages):
        held_out = goals(stage)
        curves = curves_of(stage)
        shown = held_out[:1] or [curves[name] for name in main_curves(list(curves), stage.from_rewards)[:1]]
        for curve in shown:
            yield _headline(stage, curve, bool(held_out))


def _headline(stage: StageFacts, curve: Curve, held_out: bool) -> Headline:
    side = better(curve.name)
    points = [y for _, y in (curve.held_out if held_out else curve.training) if math.isfinite(y)]
    first, last = points[0], points[-1]
    improved = (last > first) == (side == "higher") if first != last and side else None
    verdict = {True: "better", False: "worse", None: "unclear"}[improved]
    where = "held-out rows" if held_out else "the rows it learns from: none are held out"
    note = f"On {where}; {side} is better." if side else f"On {where}."
    return Headline(stage.name, curve.title, number(first), number(last), verdict, note)


def _forests(gate: GateView) -> list[tuple[str, list[tuple[GateUnit, dict[str, float | None] | None]]]]:
    """Return the parts of the forest plot, domains first, each with its units and their places."""
    parts = (("domain", gate.domains), ("eval", gate.evals))
    return [(part, [(unit, _forest(unit, gate.scale)) for unit in units]) for part, units in parts if units]


def _across(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return round(PLOT * (value - low) / (high - low), 1)


def _forest(unit: GateUnit, scale: tuple[float, float]) -> dict[str, float | None] | None:
    """Place a unit on the forest plot; None where its difference is not finite."""
    if not math.isfinite(unit.diff):
        return None
    ends = [end if math.isfinite(end) else side for end, side in zip((unit.low, unit.high), scale, strict=True)]
    low, high = (_across(end, scale) for end in ends)
    margin = None if unit.margin is None else _across(-unit.margin, scale)
    return {"low": low, "high": high, "at": _across(unit.diff, scale), "margin": margin}


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to look at. level: alarm, warning or note."""

    level: str
    where: str
    what: str


def _warnings(run: RunFacts, name: str) -> Iterator[Warned]:
    """Yield what went wrong or needs a look: alarms of the rewards, values that are not finite, bad rows."""
    for stage in run.stages:
        where = " · ".join(filter(None, (name, stage.name)))
        for alarm in stage.noted.get("alarms", []):
            yield Warned("alarm", where, str(alarm))
        if stage.noted.get("paused_at") and not stage.finished:
            yield Warned("alarm", where, f"paused at {stage.noted['paused_at']}")
        elif not stage.finished:
            yield Warned("note", where, "is not finished" if stage.curves else "has not begun")
        for curve in curves_of(stage).values():
            if curve.lost:
                yield Warned("warning", where, f"{curve.name}: {curve.lost:,} logged values are not finite")
        lost = [
            metric for metric, points in stage.curves.items() if points and not any(math.isfinite(y) for _, y in points)
        ]
        for metric in lost:
            yield Warned("warning", where, f"{metric}: no logged value is finite")
        if stage.data.get("bad"):
            yield Warned(
                "warning", where, f"{stage.data['bad']:,} rows could not be used (data_report.json lists them)"
            )
        if stage.finished and not any(metric.startswith("val/") for metric in stage.curves) and stage.curves:
            yield Warned(
                "note", where, "no rows are held out: set data.validation_fraction to see what it does on others"
            )


def _plan(stage: StageFacts) -> dict[str, str]:
    """Return one row of the plan: cells by column."""
    read = [f"{source['rows']:,}" for source in stage.data.get("sources", []) if not source.get("held_out")]
    tokens = stage.curves.get("num_tokens")
    return {
        "stage": stage.name,
        "algorithm": stage.settings["algorithm"]["type"],
        "starts from": stage.settings["model"]["path"],
        "plan": plan(stage) if "steps" in stage.noted else "–",
        "rows": " + ".join(read) or "–",
        "tokens": number(tokens[-1][1]) if tokens else "–",
        "processes": str(stage.noted.get("world_size", "–")),
        "state": stage.state,
    }


def _time(stage: StageFacts) -> str:
    """Return the shares of a profiled stage's time in words, the largest first; "" of another one."""
    try:
        parts = [(part, each["share"]) for part, each in stage.profile["parts"].items() if each["share"] >= LEAST_SHARE]
        return f"{stage.profile['seconds']:,.1f} s: " + ", ".join(f"{part} {share:.1%}" for part, share in parts)
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _hashes(stage: StageFacts) -> Iterator[tuple[str, str]]:
    """Yield name and checksum of everything that the stage read."""
    if "data" in stage.noted:
        yield "rows", stage.noted["data"]
    for source in stage.data.get("sources", []):
        for file in source.get("files", []):
            yield file["path"], file["sha256"]
    inputs: Mapping[str, Mapping[str, str]] = stage.noted.get("inputs", {})
    for setting, files in inputs.items():
        for file, content in files.items():
            yield f"{setting}: {file}" if file else setting, content or "not on this machine"


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """A confidence interval and its value, in [0, 1] of the measure's scale."""

    low: float
    high: float
    at: float


def _bars(row: MeasureRow) -> list[IntervalBar | None]:
    """Place the figures on a scale they share: 0 to 1 for a share, else round numbers around all of them."""
    ends = [f.interval or (f.value, f.value) for f in row.figures if f is not None and math.isfinite(f.value)]
    if not ends:
        return [None] * len(row.figures)
    low, high = 0.0, 1.0
    if row.unit == "number":
        scale = charts.ticks(min(low for low, _ in ends), max(high for _, high in ends), 4)
        low, high = scale[0], scale[-1]

    def place(value: float) -> float:
        return round(min(1.0, max(0.0, (value - low) / (high - low))), 4)

    def bar(figure: Figure | None) -> IntervalBar | None:
        if figure is None or not math.isfinite(figure.value):
            return None
        reach = figure.interval or (figure.value, figure.value)
        return IntervalBar(place(reach[0]), place(reach[1]), place(figure.value))

    return [bar(figure) for figure in row.figures]


def _commands(run: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield pairs of purpose and command line."""
    file = shlex.quote(str(run.directory / "run.yaml"))
    if not all(stage.finished for stage in run.stages):
        yield "Go on where it stopped", f"align train {file} --resume"
    finished = [stage for stage in run.stages if stage.finished]
    if finished:
        export = str(run.directory / finished[-1].name / "export")
        reward = finished[-1].settings["algorithm"]["type"] == "reward_model"
        model_class = "AutoModelForSequenceClassification" if reward else _language_model_class(Path(export))
        yield "Load it in Python", f"transformers.{model_class}.from_pretrained({export!r})"
        if not reward:
            yield "Serve it", f"vllm serve {shlex.quote(export)}"
        yield "Train on from it", f"align train RUN.yaml model.path={shlex.quote(export)}"
    seeds = " ".join(shlex.quote(f"stages.{stage.name}.seed={stage.settings['seed'] + 1}") for stage in run.stages)
    yield "Do it again with another seed", f"align train {file} output=runs/again {seeds}"


def _language_model_class(export: Path) -> str:
    """Return the name of the class of transformers that loads an exported language model.

    AutoModelForCausalLM refuses most multimodal models, or loads their text part alone: those are named by the class in
    their config. An adapter's export has no config of its own; its base's is read where that is a directory here.
    """
    config = _json(export / "config.json")
    if not config:
        base = _json(export / "adapter_config.json").get("base_model_name_or_path") or ""
        config = _json(export / str(base) / "config.json")
    architecture = str(next(iter(config.get("architectures") or []), ""))
    return architecture if architecture.endswith("ForConditionalGeneration") else "AutoModelForCausalLM"


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where the file cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
