"""``align data label`` against a real server, a real model and SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.core.data.mixture import load_records
from align.plugins.rewards.ai_feedback.prompts import harmless
from align.schemas.run import Data, Source
from tests.plugins.judges import Server, serving, status

PROMPT = "What is the capital of France?"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by(server: Server, **settings: Any) -> str:
    chosen = {"url": server.url, "model": "judge", "constitution": "[Be right.]", "wait": 0.01, **settings}
    return "--reward=ai_feedback:" + ",".join(f"{key}={value}" for key, value in chosen.items())


def label(*words: object) -> Result:
    return CliRunner().invoke(main, ["data", "label", *map(str, words)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
def test_given_answers(server: Server, tmp_path: Path, mode: str) -> None:
    prompts = write(
        tmp_path / "prompts.jsonl",
        [
            {"prompt": PROMPT, "completions": ["Rome", "It is Paris.", " ", "Paris"], "topic": "towns"},
            {"prompt": "Same?", "completions": ["Rome", "Oslo"]},
            {"prompt": "Blank?", "completions": ["Paris", "\n"]},
        ],
    )
    out = tmp_path / "out.jsonl"
    done = label(prompts, out, by(server, mode=mode), "--json")
    assert done.exit_code == 0, done.output
    high, low = (9.0, 2.0) if mode == "pointwise" else (0.75, 0.0)
    judged = {"scores": [high, low], "answers": 3, "source": "prompts.jsonl:1"}
    row = {"topic": "towns", "prompt": PROMPT, "chosen": "It is Paris.", "rejected": "Rome", "margin": high - low}
    assert rows(out) == [row | {"judged": judged}]
    told = json.loads(done.stdout)
    counts = {"prompts": 3, "labelled": 1, "tied": 1, "abstained": 1, "blank": 2}
    assert {key: told[key] for key in counts} == counts
    spent = told["rewards"]["ai_feedback"]
    assert spent["requests"] == len(server.seen) == (6 if mode == "pointwise" else 8)
    assert not (tmp_path / "out.jsonl.partial").exists()
    (record,) = load_records(Data(train=[Source(path=str(out))]), ("preference",)).train
    assert (record.chosen, record.rejected, record.margin) == ("It is Paris.", "Rome", high - low)


def test_conversations(server: Server, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": PROMPT}]
    speech = [[{"role": "assistant", "content": text}] for text in ("Rome", "Paris")]
    for name, given in (("texts", ["Rome", "Paris"]), ("messages", speech)):
        prompts = write(tmp_path / f"{name}.jsonl", [{"prompt": asked, "completions": given}])
        assert label(prompts, tmp_path / f"{name}.out", by(server)).exit_code == 0
        (row,) = rows(tmp_path / f"{name}.out")
        assert (row["prompt"], row["rejected"], row["chosen"]) == (asked, *speech)


def test_answers_of_a_model(server: Server, tmp_path: Path, tiny_model_dir: Path) -> None:
    asked = [{"prompt": f"The sum of {word} and"} for word in ("two", "three", "five")]
    prompts = write(tmp_path / "prompts.jsonl", asked)
    server.judge, outs = by_length, []
    for name in ("a.jsonl", "b.jsonl"):
        sampled = ["--model", tiny_model_dir, "-n", 3, "--max-completion-length", 6]
        done = label(prompts, tmp_path / name, by(server), *sampled)
        assert done.exit_code == 0, done.output
        outs.append(rows(tmp_path / name))
    assert outs[0] == outs[1] and len(outs[0]) >= 2
    lengths = [[len(harmless(row[side], "", 10**6)) for side in ("chosen", "rejected")] for row in outs[0]]
    assert all(chosen > rejected for chosen, rejected in lengths)


def by_length(conversation: list[dict[str, str]]) -> str:
    text = conversation[-1]["content"]
    inside = text.split("<<<ANSWER ")[1].split(">>>\n", 1)[1].rsplit("\n<<<END ANSWER", 1)[0]
    tag = text.rsplit("VERDICT ", 1)[1].split(":")[0]
    return f"VERDICT {tag}: {1 + min(len(inside), 900) / 100}"


def test_a_killed_run_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    made = [{"prompt": f"{PROMPT} {n}", "completions": [f"Paris {n}", f"Rome {n}"]} for n in range(40)]
    prompts, out = write(tmp_path / "prompts.jsonl", made), tmp_path / "out.jsonl"
    server.delay = 0.03
    command = [sys.executable, "-m", "align", "data", "label", str(prompts), str(out), by(server, concurrency=2)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.seen) < 30 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    journal = tmp_path / "out.jsonl.partial" / "journal.jsonl"
    assert not out.exists() and 1 + 8 <= len(journal.read_bytes().splitlines()) < 41
    with journal.open("ab") as file:
        file.write(b'{"came": "labe')  # a line that was being written
    server.delay = 0.0
    other = label(prompts, out, by(server, constitution="[Be kind.]"))
    assert other.exit_code == 2 and "was begun from other prompts or settings" in other.stderr
    done = label(prompts, out, by(server, concurrency=4, max_requests=90), "--json")
    assert done.exit_code == 0, done.stderr
    assert [row["prompt"] for row in rows(out)] == [row["prompt"] for row in made]
    assert all(row["chosen"].startswith("Paris") for row in rows(out))
    spent = json.loads(done.stdout)["rewards"]["ai_feedback"]
    assert 80 <= len(server.seen) <= 80 + 2 and len(server.seen) <= spent["requests"] <= len(server.seen) + 2
    again = label(prompts, out, by(server))
    assert again.exit_code == 2 and "exists" in again.stderr


def test_a_cap_that_stops_and_is_raised(server: Server, tmp_path: Path) -> None:
    made = [{"prompt": f"{PROMPT} {n}", "completions": [f"Paris {n}", f"Rome {n}"]} for n in range(20)]
    prompts, out = write(tmp_path / "prompts.jsonl", made), tmp_path / "out.jsonl"
    stopped = label(prompts, out, by(server, max_requests=25, on_cap="stop"))
    assert stopped.exit_code == 2 and "the cap of 25 requests is reached" in stopped.stderr and not out.exists()
    done = label(prompts, out, by(server, max_requests=40, on_cap="stop"))
    assert done.exit_code == 0 and len(rows(out)) == 20 and len(server.seen) == 40


def test_a_judge_that_is_down_labels_nothing(server: Server, tmp_path: Path) -> None:
    server.always = status(503)
    prompts, out = write(tmp_path / "p.jsonl", [{"prompt": PROMPT, "completions": ["a", "b"]}]), tmp_path / "out.jsonl"
    done = label(prompts, out, by(server, retries=1))
    assert done.exit_code == 1 and "not written" in done.stderr
    assert list(tmp_path.glob("out*")) == []  # neither an empty file nor a journal that would be taken up again
    assert "0 of 1 prompts; 0 tied, 1 without two scores; 0 blank" in done.stdout and "error 2" in done.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_answers_that_all_tie_give_no_file(tmp_path: Path, form: tuple[str, ...]) -> None:
    """An empty preference file and status 0 would end the pipeline one command later, for a reason nobody sees."""
    made = [{"prompt": PROMPT, "completions": ["abc", "xyz"]}, {"prompt": PROMPT, "completions": ["ab", "cd"]}]
    prompts, out = write(tmp_path / "p.jsonl", made), tmp_path / "out.jsonl"
    for _ in range(2):  # the second is no continuation of the first
        done = label(prompts, out, "--reward=length:shape=target,target=10,unit=characters", *form)
        assert done.exit_code == 1 and f"{out}: not written" in done.stderr
        assert list(tmp_path.glob("out*")) == []
    assert ("2 tied" in done.stdout) if not form else (json.loads(done.stdout)["tied"] == 2)
    prompts = write(tmp_path / "p.jsonl", [*made, {"prompt": PROMPT, "completions": ["a", "abcdef"]}])
    assert label(prompts, out, "--reward=length:shape=target,target=10,unit=characters").exit_code == 0
    assert [row["chosen"] for row in rows(out)] == ["abcdef"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a"}, "p.jsonl:1\n    has no answers to choose from"),
        ({"prompt": "a", "completions": ["one"]}, "p.jsonl:1: completions"),
        ({"prompt": "a", "completions": "Paris"}, "p.jsonl:1: completions"),
        ({"prompt": "a", "completions": [[{"role": "assistant", "content": "b"}]] * 2}, "p.jsonl:1: completions"),
        ({"prompt": ""}, "p.jsonl:1"),
    ],
)
def test_rows_that_cannot_be_labelled_are_named(server: Server, tmp_path: Path, row: Any, told: str) -> None:
    done = label(write(tmp_path / "p.jsonl", [row]), tmp_path / "out.jsonl", by(server))
    assert done.exit_code == 2 and told in done.stderr and not server.seen
