"""The report's page: a run directory, measures and samples in; one self-contained HTML file out."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.report import chart as charts
from align.core.report.facts import chosen, facts
from align.core.report.read import RunFacts, StageFacts, read_run
from align.core.report.table import Figure, MeasureRow, MeasureTable
from align.core.util.atomic_files import write_atomic
from align.schemas.html_template import html

__all__ = ["STYLE", "StageCompletion", "Figure", "MeasureRow", "PromptSample", "MeasureTable", "write_report"]

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
"""The style sheet of every page that the engine writes."""

REWARDS = ("reward", "gold")
"""Metrics that online training raises. They are shown before its losses, whose size says little there."""
MAIN = ("rewards/accuracies", "rewards/margins", "accuracy", "margin", "mean_token_accuracy")
"""Shown between the losses and the curves of the optimizer: the first two of these that a stage has."""
SAMPLED = ("completions/mean_length", "kl")
"""The same for a stage that samples completions."""
OPTIMISER = ("grad_norm", "learning_rate")
EXACT = ("learning_rate", "num_tokens")
"""Curves that are not smoothed, since they are set and not measured."""
LOWER = ("loss", "perplexity")
"""Held-out metrics that are shown before and after, in addition to those of MAIN."""


@dataclass(frozen=True, slots=True)
class StageCompletion:
    """The completion of one stage's model, and whether it is right, where that is known."""

    stage: str
    text: str
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class PromptSample:
    """A prompt, every stage's completion of it, and the reference answer, if there is one."""

    prompt: str
    answers: tuple[StageCompletion, ...]
    expected: str | None = None


def write_report(
    run_directory: Path,
    path: Path,
    *,
    title: str,
    table: MeasureTable | None = None,
    samples: Sequence[PromptSample] = (),
) -> None:
    """Write the page of a run to ``path``, whole or not at all. Raises AlignError where the directory is no run's."""
    page = render(read_run(run_directory), title, table, samples)
    write_atomic(path, page.encode())


def render(run: RunFacts, title: str, table: MeasureTable | None, samples: Sequence[PromptSample]) -> str:
    """Return the page as text."""
    return html(
        HERE / "page.html",
        STYLE,
        title=title,
        run=run,
        stages=[_stage(stage) for stage in run.stages],
        table=table if table and table.rows else None,
        rows=[(row, list(zip(row.figures, _bars(row), strict=True))) for row in table.rows] if table else [],
        samples=samples,
        commands=list(_commands(run)),
        versions=[(name, version) for name, version in run.manifest.get("versions", {}).items() if version],
        size=charts,
    )


def _stage(stage: StageFacts) -> dict[str, Any]:
    names = sorted({name.removeprefix("val/") for name in stage.curves}, key=lambda name: (name != "loss", name))
    drawn = {name: picture for name in names if (picture := _picture(stage, name))}
    losses = [name for name in drawn if name.split("/")[-1] in LOWER]
    rewards = [name for name in drawn if name.split("/")[-1] in REWARDS]
    expected = SAMPLED if rewards else MAIN
    more = [name for name in expected if name in drawn][:2]
    main = [*rewards, *losses[:3], *more, *[name for name in OPTIMISER if name in drawn]]
    return {
        "name": stage.name,
        "state": "finished" if stage.finished else "unfinished" if stage.curves else "not begun",
        "facts": list(facts(stage)),
        "chosen": chosen(stage),
        "held_out": [
            (name, *drawn[name].ends)
            for name in [*rewards, *losses, *MAIN]
            if name in drawn and len(stage.curves.get("val/" + name, [])) > 1
        ],
        "main": [(name, drawn[name]) for name in main],
        "rest": [(name, drawn[name]) for name in drawn if name not in main],
    }


def _picture(stage: StageFacts, name: str) -> charts.Chart | None:
    """Draw the training curve and the held-out one together; named held-out sets have pictures of their own."""
    return charts.chart(stage.curves.get(name, []), stage.curves.get("val/" + name, []), smoothed=name not in EXACT)


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
