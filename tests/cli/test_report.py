"""``align report``, ``align diff``, and the report that ``align train`` leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.core.config import run_file
from align.core.config.run_file import dump, parse
from align.core.report.differences import run_before
from align.core.report.read import read_run
from tests.core.runs import run_for, write_rows

RUN = """
output: {output}
stages:
- name: sft
  model: {{path: base}}
  data: {{train: rows.jsonl, validation_fraction: 0.2}}
  algorithm: sft
  optimizer: {{learning_rate: {rate}}}
"""
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run_directory(place: Path, rate: str = "2e-5", **noted: Any) -> Path:
    """A finished run as ``align train`` leaves it. noted: other facts of its manifest and its only stage."""
    facts = {"rows": "a" * 64, "file": "b" * 64, "model": "c" * 64, "torch": "2.9.0", "loss": "1.25", "day": 0} | noted
    stage = place / "sft"
    stage.mkdir(parents=True)
    (place / "run.yaml").write_text(
        dump(parse(RUN.format(output=place, rate=rate), "run.yaml")).replace(str(place), "out")
    )
    manifest = {
        "versions": {"torch": facts["torch"]},
        "python": "3.11.7",
        "started": (START + timedelta(days=facts["day"])).isoformat(),
        "stages": {
            "sft": {"steps": 3, "data": facts["rows"], "inputs": {"model": {"model.safetensors": facts["model"]}}}
        },
    }
    (place / "manifest.json").write_text(json.dumps(manifest))
    sources = [
        {
            "path": f"{place}/rows.jsonl",
            "rows": 3,
            "form": "chat",
            "files": [{"path": f"{place}/rows.jsonl", "sha256": facts["file"]}],
        }
    ]
    (stage / "data_report.json").write_text(json.dumps({"sources": sources, "bad": 0}))
    (stage / "metrics.csv").write_text(f"step,epoch,loss,val/loss\n1,0,2,1.5\n2,1,1,{facts['loss']}\n")
    (stage / "done.json").write_text("{}")
    return place


def align(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that differ in a setting, rows, a file, the model, a version and the result."""
    other = {"rows": "d" * 64, "file": "e" * 64, "model": "f" * 64, "torch": "2.9.1", "loss": "1.2", "day": 1}
    return run_directory(tmp_path / "first"), run_directory(tmp_path / "second", "5e-5", **other)


DIFFERENCES = [
    ("versions", "", "torch", "2.9.0", "2.9.1"),
    ("settings", "sft", "optimizer.learning_rate", "2e-05", "5e-05"),
    ("data", "sft", "rows", "a" * 12, "d" * 12),
    ("data", "sft", "rows.jsonl", "b" * 12, "e" * 12),
    ("model", "sft", "model: model.safetensors", "c" * 12, "f" * 12),
    ("results", "sft", "held-out loss", "1.25", "1.2"),
]


def test_diff_says_why_two_runs_differ(pair: tuple[Path, Path]) -> None:
    done = align("diff", *pair)
    assert done.exit_code == 0
    assert done.stdout == (
        "versions\n"
        "  torch: 2.9.0 → 2.9.1\n"
        "sft: settings\n"
        "  optimizer.learning_rate: 2e-05 → 5e-05\n"
        "sft: data\n"
        "  rows: aaaaaaaaaaaa → dddddddddddd\n"
        "  rows.jsonl: bbbbbbbbbbbb → eeeeeeeeeeee\n"
        "sft: model\n"
        "  model: model.safetensors: cccccccccccc → ffffffffffff\n"
        "sft: results\n"
        "  held-out loss: 1.25 → 1.2\n"
    )


def test_diff_as_json(pair: tuple[Path, Path]) -> None:
    done = align("diff", *pair, "--json")
    keys = ("kind", "stage", "name", "before", "after")
    differences = [dict(zip(keys, each, strict=True)) for each in DIFFERENCES]
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"first": str(pair[0]), "second": str(pair[1]), "differences": differences}


def test_equal_runs_do_not_differ_wherever_they_lie(tmp_path: Path) -> None:
    runs = [run_directory(tmp_path / "first"), run_directory(tmp_path / "elsewhere" / "second", day=1)]
    done, as_json = align("diff", *runs), align("diff", *runs, "--json")
    assert (done.exit_code, done.stdout) == (0, "Nothing that was recorded differs.\n")
    assert as_json.exit_code == 0 and json.loads(as_json.stdout)["differences"] == []


def test_what_only_one_run_has_is_a_difference(tmp_path: Path) -> None:
    one, two = run_directory(tmp_path / "first"), run_directory(tmp_path / "second")
    (two / "sft" / "data_report.json").unlink()
    assert "  rows.jsonl: bbbbbbbbbbbb → –\n" in align("diff", one, two).stdout
    assert "  rows.jsonl: – → bbbbbbbbbbbb\n" in align("diff", two, one).stdout


def test_text_of_a_run_cannot_move_the_terminal(tmp_path: Path) -> None:
    one, two = run_directory(tmp_path / "first"), run_directory(tmp_path / "second", torch="2.9\x1b[2J")
    assert "  torch: 2.9.0 → 2.9⟨U+001B⟩[2J\n" in align("diff", one, two).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report"], "Missing argument"),
        (["report", "{place}/nothing"], "has no run.yaml"),
        (["report", "{place}"], "has no run.yaml"),
        (["report", "{run}/run.yaml"], "has no run.yaml"),
        (["report", "{run}", "{place}/nothing"], "has no run.yaml"),
        (["report", *["{run}"] * 7], "7 runs are too many for one page"),
        (["report", "{run}", "--serve", "--out", "{place}/page.html"], "leave out --out"),
        (["report", "{place}/nothing", "--serve"], "has no run.yaml"),
        (["report", "{run}", "--gate", "{place}/none.json"], "none.json"),
        (["report", "{run}", "--gate", "{run}/run.yaml"], "run.yaml"),
        (["report", "{run}", "--port", "99999"], "99999"),
        (["diff", "{run}"], "Missing argument"),
        (["diff", "{run}", "{place}/nothing"], "has no run.yaml"),
        (["diff", "{run}", "{run}", "{run}"], "unexpected extra argument"),
    ],
)
def test_mistakes_are_said_without_a_traceback_and_leave_no_page(words: list[str], said: str, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    done = align(*(word.format(place=tmp_path, run=run) for word in words))
    assert done.exit_code == 2 and said in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit) and "Traceback" not in done.output
    assert list(tmp_path.rglob("*.html")) == []


def test_report_writes_into_the_last_run_or_where_it_is_told(tmp_path: Path) -> None:
    runs = [run_directory(tmp_path / name) for name in ("first", "second")]
    done = align("report", *runs)
    assert (done.exit_code, done.stdout) == (0, f"{runs[1] / 'report.html'}\n")
    assert "<title>first and second</title>" in (runs[1] / "report.html").read_text()
    assert not (runs[0] / "report.html").exists()
    done = align("report", runs[0], "--out", tmp_path / "page.html", "--title", "A <b>title</b>")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'page.html'}\n")
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in (tmp_path / "page.html").read_text()


def test_a_damaged_setting_of_a_run_is_the_users_to_know(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (run / "run.yaml").write_text("stages: [")
    done = align("report", run)
    assert done.exit_code == 2 and "run.yaml" in done.output and "Traceback" not in done.output


# The run before


def test_the_run_before_is_the_last_that_started_earlier_in_a_directory_next_to_it(tmp_path: Path) -> None:
    for name, day in (("a", 3), ("b", 1), ("c", 2), ("d", 4)):
        run_directory(tmp_path / "runs" / name, day=day)
    run_directory(tmp_path / "elsewhere" / "e", day=2)
    damaged = run_directory(tmp_path / "runs" / "damaged", day=2)
    (damaged / "run.yaml").write_text("stages: [")
    undated = run_directory(tmp_path / "runs" / "undated", day=2)
    (undated / "manifest.json").write_text('{"started": "yesterday"}')

    def before(name: str) -> str | None:
        found = run_before(read_run(tmp_path / "runs" / name))
        return found and found.directory.name

    assert {name: before(name) for name in "abcd"} == {"a": "c", "b": None, "c": "b", "d": "a"}
    assert before("undated") is None


def test_the_page_says_what_differs_from_the_run_before(tmp_path: Path) -> None:
    run_directory(tmp_path / "first")
    second = run_directory(tmp_path / "second", "5e-5", day=1)
    assert align("report", second).exit_code == 0
    page = (second / "report.html").read_text()
    differs = page[page.index('<section id="differences"') : page.index('<section id="next"')]
    assert "optimizer.learning_rate" in differs and "2e-05" in differs and "5e-05" in differs


# Without PyTorch, and at the end of training


def test_a_report_and_a_diff_load_neither_torch_nor_plugins(tmp_path: Path) -> None:
    """PyTorch took up to 24 seconds of a command that reads a few files; algorithms import it."""
    online = "  rollout: {rewards: [math], gold: exact}\n"
    runs = []
    for name in ("first", "second"):
        run = run_directory(tmp_path / name)
        text = RUN.format(output=run, rate="2e-5").replace("algorithm: sft", "algorithm: {type: grpo, beta: 0.04}")
        (run / "run.yaml").write_text(dump(parse(text + online, "run.yaml")))
        runs.append(run)
    code = (
        "import sys\n"
        "from align.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'lightning', 'align.plugins.algorithms'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    for words in (["report", runs[0]], ["report", *runs], ["diff", *runs]):
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "algorithm.beta" in (runs[0] / "report.html").read_text()


@pytest.fixture
def small(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file of two steps, whose output is ``run`` next to it."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run")
    (tmp_path / "run.yaml").write_text(run_file.dump(run))
    return tmp_path / "run.yaml"


def test_train_writes_the_report(small: Path) -> None:
    done = align("train", small, "stages.only.train.max_steps=2")
    assert done.exit_code == 0, done.output
    page = (small.parent / "run" / "report.html").read_text()
    assert "<title>run</title>" in page.replace(f"{small.parent.name}/", "") and "2 steps of" in page


def test_a_report_that_fails_is_a_warning_and_the_models_are_there(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("align.api.reporting.write_report", fail)
    done = align("train", small, "stages.only.train.max_steps=2")
    assert done.exit_code == 0, done.output
    assert "the report was not written: no room" in done.stderr and "`align report` tries again" in done.stderr
    run = small.parent / "run"
    assert (run / "only" / "export" / "model.safetensors").exists() and not (run / "report.html").exists()
    monkeypatch.undo()
    assert align("report", run).exit_code == 0 and (run / "report.html").exists()
