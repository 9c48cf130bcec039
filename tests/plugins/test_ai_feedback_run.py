"""A run that learns from a judge which fails in every way, over real HTTP: it goes on, and its books are right."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from align.core.training.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.plugins import judges
from tests.plugins.judges import Fault, Server, body, serving, status
from tests.tiny import save_tiny

STEPS = 4


def run_with(server: Server, place: Path, **settings: Any) -> Run:
    model = place / "model"
    if not model.exists():
        save_tiny(model)
        prompts = [{"prompt": f"The sum of {a} and {b}"} for a in ("two", "three", "five") for b in ("two", "three")]
        (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    reward = {"type": "ai_feedback", "url": server.url, "model": "judge", "constitution": ["Be short."]}
    reward |= {"wait": 0.01, "retries": 1, "tries": 2, "request_timeout": 0.3, **settings}
    stage = {
        "name": "only",
        "model": {"path": str(model)},
        "data": {"train": str(place / "prompts.jsonl"), "dataset_num_proc": 1},
        "algorithm": {"type": "rloo", "beta": 0.0, "num_generations": 2},
        "train": {"batch_size": 4, "max_steps": STEPS},
        "checkpoint": {"save_steps": 1},
        "rollout": {"rewards": [reward], "sampling": {"max_completion_length": 4}},
    }
    return Run.model_validate({"output": str(place / "run"), "stages": [stage]})


def by_length(conversation: list[dict[str, str]]) -> str:
    text = conversation[-1]["content"]
    tag, inside = text.rsplit("VERDICT ", 1)[1].split(":")[0], text.split("<<<ANSWER ")[1]
    return f"VERDICT {tag}: {1 + len(inside) % 9}"


def test_a_run_goes_on_whatever_the_judge_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    faults: list[Fault | None] = [
        *(status(429, Retry_After="0"), status(500), judges.reset, judges.hang, judges.drip, body(b"garbage"), None),
        *(body(b"\xff\xfe"), judges.flood, status(400), status(307, Location="http://127.0.0.1:9/"), None, status(503)),
    ]
    with serving() as server:
        server.judge, server.faults = by_length, list(faults)
        train(run_with(server, tmp_path, max_requests=22, concurrency=2))
        assert (tmp_path / "run/only/done.json").exists() and not server.faults
        with sqlite3.connect(tmp_path / "run/only/ai_feedback.sqlite") as books:
            ((requests,),) = books.execute("SELECT requests FROM spent").fetchall()
        assert requests == len(server.seen) <= 22
    with open(tmp_path / "run/only/metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= STEPS


def test_a_cap_stops_a_run_that_goes_on_with_a_higher_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.judge = by_length
        with pytest.raises(AlignError, match="the cap of 7 requests is reached"):
            train(run_with(server, tmp_path, max_requests=7, on_cap="stop"))
        assert len(server.seen) == 7
        train(run_with(server, tmp_path, max_requests=100, on_cap="stop"), resume=True)
        asked = [seen["messages"][1]["content"] for _, _, seen in server.seen]
        assert len(set(asked)) == len(asked) <= 4 * STEPS, "what was judged before is not paid for again"
    assert (tmp_path / "run/only/done.json").exists()
