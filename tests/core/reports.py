"""Run directories made by hand for the report's tests, and what is in a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from align.core.config.yaml_loader import write as to_yaml
from align.core.report import Figure, MeasureRow, MeasureTable, PromptSample, StageCompletion, write_report

SECTIONS = ["results", "curves", "samples", "warnings", "plan", "differences", "next", "details"]

METRICS = "step,epoch,loss,{0},val/loss,val/{0}/loss\n1,0,2,5,,\n2,0,1,6,,\n2,0,,,1.5,1.75\n3,1,,,1.25,1\n"


def write_run(directory: Path, text: str = "plain", stages: Sequence[str] = ("sft",), metrics: str = METRICS) -> Path:
    """A run directory with ``text`` in every place that holds text, as ``align train`` would have left it."""
    said = text.replace("\ud83d", "")  # which no run file may hold
    settings = [
        {
            "name": stage,
            "model": {"path": said, "chat_template": said},
            "data": {"train": [{"path": said}], "validation": [{"path": said, "name": said}], "allow": [said]},
            "algorithm": {"type": said, "beta": said, "nested": {"deep": [said]}},
            "train": {"batch_size": 8},
            "seed": 0,
        }
        for stage in stages
    ]
    directory.mkdir(parents=True)
    (directory / "run.yaml").write_text(to_yaml({"output": "out", "stages": settings}))
    noted = {stage: {"steps": 3, "data": text, "world_size": 1} for stage in stages}
    facts: dict[str, Any] = {
        "stages": noted,
        "versions": {text: text},
        "python": text,
        "started": text,
        "command": [text],
    }
    facts["overrides"] = [{"rule": text, "reason": text}]
    (directory / "manifest.json").write_text(json.dumps(facts))
    (directory / "advice.json").write_text(json.dumps({"summary": text, "confidence": text}))
    for stage in stages:
        (directory / stage).mkdir()
        report = {"sources": [{"path": text, "rows": 3, "form": text}], "bad": 1}
        (directory / stage / "data_report.json").write_text(json.dumps(report))
        column = "".join(c for c in text if c.isprintable() and c not in ',"\ud83d')
        (directory / stage / "metrics.csv").write_text(metrics.format(column))
        (directory / stage / "done.json").write_text("{}")
    return directory


def measures(text: str = "plain") -> dict[str, Any]:
    figures = (Figure(0.2, 0.1, 0.3), Figure(0.9, 0.8, 0.95))
    answers = (StageCompletion(text, text, True), StageCompletion(text, text, False), StageCompletion(text, text))
    return {
        "table": MeasureTable((text, text), (MeasureRow(text, figures, note=text),)),
        "samples": [PromptSample(text, answers, text)],
    }


class Shape(HTMLParser):
    """The tags with their attributes' names and inert values, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ends: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.text: list[str] = []
        self.declarations: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.ends.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.declarations.append(data)

    def unknown_decl(self, data: str) -> None:
        self.declarations.append(data)


def page_of(directory: Path, title: str = "title", **shown: Any) -> str:
    path = directory / "report.html"
    write_report(directory, path, title=title, **shown)
    return path.read_text(encoding="utf-8")
