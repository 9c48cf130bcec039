"""The page: facts in, one self-contained HTML file out.

Everything that models and data say is hostile. So the template escapes every value (jinja2's autoescape; nothing is
ever marked safe), there is no script, and the page's own policy forbids everything but its one style sheet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.core.report import chart
from align.core.report.read import RunFacts, StageFacts, read_run

HERE = Path(__file__).parent
FILE = "report.html"

MAIN = ("loss", "rewards/accuracies", "rewards/margins", "accuracy", "margin", "kl", "mean_token_accuracy", "grad_norm")
"""Metrics shown at once, in this order; the others can be unfolded."""
MAIN_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Picture:
    """A metric of a stage, drawn."""

    name: str
    chart: chart.Chart


@dataclass(frozen=True, slots=True)
class Change:
    """A held-out loss before and after a stage."""

    name: str
    before: str
    after: str


def write(directory: Path) -> Path:
    """Write ``report.html`` into a run directory; gives its path. Raises AlignError where it is no run's directory."""
    path = directory / FILE
    path.write_text(render(read_run(directory)), encoding="utf-8")
    return path


def render(run: RunFacts) -> str:
    """The page of a run."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        run=run,
        stages=[_view(stage) for stage in run.stages],
        evaluation=run.evaluation,
        size=chart,
        number=chart.number,
        style=style,
        # Whoever got text past the escaping could still not style, script, load or send anything.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _view(stage: StageFacts) -> dict[str, Any]:
    pictures = list(_pictures(stage))
    first = [picture for name in MAIN for picture in pictures if picture.name == name][:MAIN_SHOWN]
    return {
        "name": stage.name,
        "facts": list(_facts(stage)),
        "finished": stage.finished,
        "changes": list(_changes(stage)),
        "main": first,
        "rest": [picture for picture in pictures if picture not in first],
    }


def _pictures(stage: StageFacts) -> Iterator[Picture]:
    """One for each metric, held-out and training courses together; named held-out sets have their own."""
    curves = stage.curves
    for name in sorted({name.removeprefix("val/") for name in curves}):
        training, held_out = curves.get(name, []), curves.get("val/" + name, [])
        if len(training) > 1 or len(held_out) > 1:
            yield Picture(name, chart.chart(training, held_out))


def _changes(stage: StageFacts) -> Iterator[Change]:
    for name, points in stage.curves.items():
        if name.startswith("val/") and name.endswith("loss") and len(points) > 1:
            (_, before), (_, after) = points[0], points[-1]
            yield Change(name.removeprefix("val/"), f"{before:.3f}", f"{after:.3f}")


def _facts(stage: StageFacts) -> Iterator[tuple[str, str]]:
    settings = stage.settings
    algorithm, model, train = settings["algorithm"], settings["model"], settings["train"]
    chosen = ", ".join(f"{key} {value}" for key, value in algorithm.items() if key != "type")
    yield "algorithm", algorithm["type"] + (f" ({chosen})" if chosen else "")
    yield "starts from", model["path"]
    if adapter := model["adapter"]:
        yield "adapter", f"{adapter['type']}, rank {adapter['rank']}, alpha {adapter['alpha']}"
    for source in stage.sources:
        yield "learns from", f"{source['path']}: {source['rows']} {source['form']}"
    yield "steps", f"{stage.noted.get('steps', '?')} of {train['batch_size']} examples"
    if rates := stage.curves.get("learning_rate"):
        yield "learning rate", f"{chart.number(max(rate for _, rate in rates))} at most"
    if tokens := stage.curves.get("num_tokens"):
        yield "tokens", chart.number(tokens[-1][1])
    yield "seed", str(settings["seed"])
