"""docs/python.md: its blocks are one session in a notebook; an expression with a comment has that value."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

import align
from align.schemas.errors import AlignError
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def comments(source: str) -> dict[int, str]:
    """The comment that ends each line, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string[1:].strip() for token in tokens if token.type == tokenize.COMMENT}


def run_block(source: str, known: dict[str, Any]) -> int:
    """Run a block; returns how many values were compared with their comments."""
    shown, compared = comments(source), 0
    for node in ast.parse(source).body:
        code = ast.unparse(node)
        wanted = shown.get(node.end_lineno or 0)
        if isinstance(node, ast.Expr) and wanted is not None:
            assert repr(eval(code, known)) == wanted, code
            compared += 1
        else:
            exec(code, known)
    return compared


def test_the_page_is_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "start")
    known: dict[str, Any] = {}
    assert sum(run_block(block, known) for block in BLOCKS) == 13


def test_the_table_names_public_functions_and_real_commands() -> None:
    from align.cli import COMMANDS

    rows = re.findall(r"^\| `align\.(\w+)(?:\.\w+)?\(.*?\| (.*?) \|", PAGE, re.MULTILINE)
    assert len(rows) == 30
    assert {name for name, _ in rows} <= set(align.__all__)
    commands = [word for _, cell in rows for word in re.findall(r"`align (\w+)", cell)]
    assert set(commands) <= set(COMMANDS)
    ours = {name for name in align.__all__ if getattr(align, name).__module__.startswith("align.api")}
    helpers = {"BriefReader", "ResumeProof", "RunEstimate"}
    assert ours - helpers == {name for name, _ in rows} - {"load", "render"}


@pytest.mark.parametrize("name", ["advise", "estimate", "measure", "check", "train", "sample", "score", "audit"])
def test_each_says_what_it_takes_and_raises(name: str) -> None:
    function = getattr(align, name)
    told = inspect.getdoc(function) or ""
    assert "AlignError" in told
    (first, *_) = inspect.signature(function).parameters
    assert {first} <= set(re.findall(r"\w+", told))


@pytest.mark.parametrize(
    "call",
    [
        lambda: align.advise("gone.md"),
        lambda: align.advise({"behavior": {}}),
        lambda: align.advise({"description": object()}),
        lambda: align.advise("x", data={"pairs": "rows.jsonl"}),  # type: ignore[dict-item]
        lambda: align.advise("x", data="gone.jsonl"),
        lambda: align.advise("x", hardware={"gpu_count": 1}),
        lambda: align.advise("x", answers={"no.field": 1}),
        lambda: align.advise("x", thresholds="gone.yaml"),
        lambda: align.measure("x"),
        lambda: align.measure("x", rows=0),
        lambda: align.estimate("gone.yaml"),
        lambda: align.estimate("gone.yaml", devices=0),
        lambda: align.check("gone.yaml"),
        lambda: align.train("gone.yaml"),
        lambda: align.sample("gone/model", "x"),
        lambda: align.sample("gone/model", "x", temprature=1),
        lambda: align.sample("gone/model", "x", best_of=2),
        lambda: align.score("no_such_reward", [{"completion": "x"}]),
        lambda: align.score("math", "gone.jsonl"),
        lambda: align.score("math", []),
        lambda: align.score("math", [{"completion": object()}]),
        lambda: align.score({"type": "length", "targt": 1}, [{"completion": "x"}]),
        lambda: align.audit("math", [{"completion": "x"}], n=1),
        lambda: align.label_data("gone.jsonl", "out.jsonl", ["math"]),
        lambda: align.label_data("gone.jsonl", "out.jsonl", []),
        lambda: align.check_data([], against=["gone.jsonl"]),
        lambda: align.check_data("rows.jsonl", max_length=3),
        lambda: align.list_plugins("algoritm"),
        lambda: align.describe_plugin("dop"),
        lambda: align.preview_data("gone.jsonl", "gone/model"),
    ],
)
def test_a_mistake_is_an_align_error(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignError) as error:
        call()
    assert all(problem.what for problem in error.value.problems)


def test_an_error_of_the_machine_is_an_align_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.core.config import project_file

    def full(path: str) -> Any:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(project_file, "read_file", full)
    with pytest.raises(AlignError, match="no room is left on the disk"):
        align.advise("brief.md")


def test_advice_and_checks_of_data_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    code = (
        "import sys, align\n"
        "align.advise('The prices change daily.', data='rows.jsonl')\n"
        "align.check_data('rows.jsonl')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_strings_that_end_as_a_brief_does_are_files_and_others_are_words(tmp_path: Path) -> None:
    file = tmp_path / "brief.md"
    file.write_text("The prices change daily.\n")
    by_name, by_path = align.advise(str(file)), align.advise(file)
    assert by_name == by_path and by_path.primary == align.advise("The prices change daily.").primary
    odd = tmp_path / "brief"
    odd.write_text("The prices change daily.\n")
    assert align.advise(odd).primary == by_path.primary
    assert align.advise("It must keep 27 rules.\nThey are in rules.txt").primary != "insufficient"


def test_questions_are_answered_by_a_function() -> None:
    fields = []

    def answer(question: Any) -> Any:
        fields.append(question.field)
        return 27 if question.field == "behaviour.rules_count" else None

    align.advise("", ask=answer)
    assert 0 < len(fields) <= 9 and fields[0] == "goal"


def test_measuring_gives_what_advice_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "start")
    lamps = [{"prompt": f"What is lamp {n}?", "completion": "It is on."} for n in range(8)]
    (tmp_path / "lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lamps))
    probes: list[str] = []
    brief = {"model": {"name": "start"}, "data": [{"kind": "sft_pairs", "path": "lamps.jsonl"}]}
    found = align.measure(brief, rows=4, samples=2, max_completion_length=2, report=probes.append)
    assert found.zero_shot is not None and found.zero_shot.rows == 4 and found.score == "word F1"
    assert probes[:2] == ["loading the model", "zero shots"]
    assert align.AdviceCase.collect(brief, measured=found).form().measured == found


def test_measurements_are_laid_over_those_of_the_form() -> None:
    old = {"value": 0.1, "low": 0.0, "high": 0.2, "rows": 40}
    found = align.Measured.model_validate({"zero_shot": {"value": 0.9, "low": 0.8, "high": 1.0, "rows": 40}})
    case = align.AdviceCase.collect({"measured": {"zero_shot": old, "pass_1": old}}, measured=found)
    kept = case.form().measured
    assert kept.zero_shot is not None and kept.zero_shot.value == 0.9
    assert kept.pass_1 is not None and kept.pass_1.value == 0.1
