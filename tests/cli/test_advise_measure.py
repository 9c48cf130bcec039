"""``align advise --measure`` and ``--parser llm`` with a real tiny model, real files and a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.core.config.project_file import read
from align.core.inference import json_client
from tests.core.servers import Reply, Seen, serving
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def advise(*words: object) -> Result:
    return CliRunner().invoke(main, ["advise", *map(str, words), "--format", "json"])


def advised(result: Result) -> dict[str, Any]:
    assert result.exit_code in (0, 1, 3), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


FORM = """\
description: The model should answer questions about lamps.
behaviour:
  target_capability: reasoning
knowledge:
  source: none
evals:
  metric: share right
  target: 0.5
"""


@pytest.fixture
def files() -> list[str]:
    """Questions with answers, documents, pairs and prompts; a reward that finds everything right."""
    lamps = range(14)
    Path("brief.yaml").write_text(FORM)
    Path("right.py").write_text("def right(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n")
    return [
        write("q.jsonl", [{"prompt": f"What is lamp {i}?", "completion": "It is on."} for i in lamps]),
        write("docs.jsonl", [{"text": f"Of lamp {i}: it is on."} for i in lamps]),
        write("pairs.jsonl", [{"prompt": f"Lamp {i}?", "chosen": "on", "rejected": "off"} for i in lamps]),
    ]


def test_every_probe_in_one_command_and_its_form_needs_no_model_again(place: Path, files: list[str]) -> None:
    save_tiny(place / "m")
    reference = write("plain.jsonl", [{"text": f"The sea is wide and blue, {i}."} for i in range(5)])
    data = [word for file in files for word in ("--data", file)]
    limits = ["--max-completion-length", 4, "--measure-rows", 10, "--samples", 2, "--reference", reference]
    result = advise(
        "brief.yaml", "--measure", "--model", "m", *data, "--reward", "right.py:right", *limits, "--save", "f.yaml"
    )
    advice = advised(result)
    assert advice["primary"] == "prompting"
    reason = next(r for r in advice["reasons"] if r["rule"] == "R-MEA-1")
    # 10 of 10 right: Wilson's low end is 10 / (10 + 1.96^2) = 0.722, above the target of 0.5
    assert "1 (0.722 to 1, 10 rows), wanted 0.5" in reason["because"]
    assert {q["source"] for q in reason["quotes"]} == {"measured", "brief.yaml line 8"}
    assert {"measure_retrieval", "measure_headroom"} <= {q["id"] for q in advice["missing"]}
    shown = [line.removeprefix("measuring: ") for line in result.stderr.splitlines() if line.startswith("measuring: ")]
    assert shown == [
        *("loading the model", "zero shots", "worked examples", "open book", "corpus bits", "reference bits"),
        *("2 samples of each prompt", "preferences"),
    ]

    measured = read("f.yaml", bytes).project.measured
    assert all(value is not None for _, value in measured)
    assert measured.score == "python"
    assert measured.pass_1 is not None and (measured.pass_1.value, measured.pass_1.rows) == (1, 10)
    shutil.rmtree("m")
    script = (
        "import sys; from align.cli import main\n"
        "code = main(['advise', 'f.yaml', '--format', 'json'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert again.stderr == ""
    replayed = json.loads(again.stdout)
    assert replayed["primary"] == "prompting"
    assert [r["because"] for r in replayed["reasons"]] == [r["because"] for r in advice["reasons"]]


def test_a_later_measurement_takes_the_place_of_an_earlier_one(place: Path, files: list[str]) -> None:
    save_tiny(place / "m")
    old = "{value: 0.9, low: 0.9, high: 0.9, rows: 7}"
    form = f"measured: {{zero_shot: {old}, pass_1: {old}}}\n"
    Path("brief.yaml").write_text(f"model: {{name: m}}\ndata: [{{kind: sft_pairs, path: q.jsonl}}]\n{form}")
    advised(advise("brief.yaml", "--measure", "--max-completion-length", 2, "--measure-rows", 6, "--save", "f.yaml"))
    measured = read("f.yaml", bytes).project.measured
    assert measured.zero_shot is not None and (measured.zero_shot.rows, measured.zero_shot.value) == (6, 0)
    assert measured.pass_1 is not None and measured.pass_1.rows == 7
    assert measured.score == "word F1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "x", "--measure"], ["no model is named", "no data file is named"]),
        (["--text", "x", "--reward", "math"], ["--reward: only with --measure"]),
        (["--text", "x", "--llm-model", "m"], ["--llm-model: only with --parser llm"]),
        (["--text", "x", "--parser", "llm"], ["--parser llm needs --llm-model"]),
        (["--text", "x", "--parser", "llm", "--llm-model", "m", "--llm-key-env", "K"], ["only with --llm-url"]),
        (["--text", "x", "--parser", "llm", "--llm-model", "nowhere"], ["nowhere", "not a local directory"]),
        (["--text", "x", "--measure", "--model", "nowhere", "--data", "q.jsonl"], ["not a local directory"]),
        (["--text", "x", "--measure", "--model", "m", "--data", "none.jsonl"], ["none.jsonl"]),
        (["--text", "x", "--measure", "--model", "m", "--data", "prompts.jsonl"], ["--reward"]),
        (
            ["--text", "x", "--measure", "--model", "m", "--data", "q.jsonl", "--reference", "q.jsonl"],
            ["q.jsonl", "holds no plain text"],
        ),
    ],
)
def test_mistakes_are_told_without_a_traceback(files: list[str], words: list[str], said: list[str]) -> None:
    write("prompts.jsonl", [{"prompt": "Why?"}])
    result = advise(*words)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert all(word in result.stderr for word in said), result.stderr


TEXT = "We have 14,000 labelled pairs. 27 mandatory clauses must hold together. Nobody else knows 12 of them."
FACTS = [
    {"field": "data.sft_pairs.rows", "value": 14000, "quote": "14,000 labelled pairs", "status": "asserted"},
    {"field": "behaviour.rules_count", "value": 12, "quote": "12 of them", "status": "asserted"},
    {"field": "model.params_b", "value": 70, "quote": "a 70B model", "status": "asserted"},
]


def answers(seen: Seen) -> Reply:
    return Reply({"choices": [{"message": {"content": json.dumps({"facts": FACTS})}}]})


def test_a_model_beside_the_rules_is_recorded_replayed_and_asked_about() -> None:
    asked = ["--text", TEXT, "--parser", "llm", "--llm-model", "reader", "--record", "replies"]
    with serving(answers) as server:
        first = advise(*asked, "--llm-url", f"{server.url}/v1")
        assert len(server.seen) == 1
        assert TEXT in server.seen[0].content["messages"][0]["content"]
    advice = advised(first)
    assert advice["provenance"]["parser"] == "llm:reader"
    assert [need["given"] for need in advice["data"] if need["need"] == "sft_pairs"] == [
        14000
    ]  # read twice, there once
    assert [c["fact"] for c in advice["conflicts"]] == ["behaviour.rules_count"]
    (question,) = [q for q in advice["missing"] if q["id"] == "reading.behaviour.rules_count"]
    assert "27 mandatory clauses" in question["question"] and "12 of them" in question["question"]
    assert any("70B" in told and "is not in the text" in told for told in advice["not_understood"])
    # Twelve rules or 27: the readers disagree about what decides, and the answer is not even probable.
    assert advice["confidence"] == "low" and advice["probability"] < 0.7
    replayed = advise(*asked, "--offline", "--llm-url", "https://models.invalid/v1")
    assert replayed.stdout == first.stdout
    unknown = advise(*asked, "--offline", "--text", f"{TEXT} More.")
    assert unknown.exit_code == 2 and "--offline forbids asking" in unknown.stderr


def test_a_brief_leaves_this_machine_only_where_it_may() -> None:
    result = advise("--text", TEXT, "--parser", "llm", "--llm-model", "m", "--llm-url", "https://models.invalid/v1")
    assert result.exit_code == 2
    assert "would leave this machine" in result.stderr and "--allow-network" in result.stderr


def test_a_model_of_ones_own_that_talks_nonsense_changes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_client, "MAX_TOKENS", 8)
    save_tiny(place / "m", max_position_embeddings=16384)
    alone = advised(advise("--text", TEXT))
    beside = advised(advise("--text", TEXT, "--parser", "llm", "--llm-model", "m"))
    assert any(told.startswith("the model's reply: it is no JSON") for told in beside["not_understood"])
    assert (beside["primary"], beside["plan"]) == (alone["primary"], alone["plan"])
    save_tiny(place / "short")
    result = advise("--text", TEXT, "--parser", "llm", "--llm-model", "short")
    assert result.exit_code == 2 and "name a model with a longer context" in result.stderr
