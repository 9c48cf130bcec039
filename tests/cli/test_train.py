"""``align train`` as a user meets it: what it prints, how it ends, how one goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.cli import main
from align.cli.train import _first_reports
from align.core.config import run_file as runfile
from align.core.engine import checkpoint
from align.schemas.errors import AlignError
from tests.core.runs import run_for, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def run_file(model: Path, tmp_path: Path, algorithm: str = "sft") -> Path:
    rows = write_rows(algorithm, tmp_path / "rows.jsonl")
    file = tmp_path / "run.yaml"
    file.write_text(runfile.dump(run_for(algorithm, model, rows, tmp_path / "run")))
    return file


def test_train_says_where_the_model_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    done = CliRunner().invoke(main, ["train", str(file), "stages.only.train.max_steps=2"])
    assert done.exit_code == 0, done.output
    export = tmp_path / "run" / "only" / "export"
    assert f"only: {export}" in done.output and (export / "model.safetensors").exists()
    again = CliRunner().invoke(main, ["train", str(file), "stages.only.train.max_steps=2"])
    assert again.exit_code == 0 and again.stdout == done.stdout  # stderr has the steps of the first only


def test_check_shows_data_plan_and_tokens_and_writes_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path, "dpo")
    done = CliRunner().invoke(main, ["train", str(file), "--check"])
    assert done.exit_code == 0, done.output
    for fact in ("only (dpo)", "held out", "scored tokens in", "micro-batches", "rows.jsonl:1", "ready to train"):
        assert fact in done.output
    assert not (tmp_path / "run").exists()


def test_mistakes_come_all_at_once_without_a_traceback(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    done = CliRunner().invoke(
        main, ["train", str(file), "stages.only.train.batchsize=4", "stages.only.optimizer.learning_rate=-1"]
    )
    assert done.exit_code == 2
    assert "did you mean 'batch_size'?" in done.output and "optimizer.learning_rate" in done.output
    assert "Traceback" not in done.output


def test_a_bad_row_is_named_by_file_and_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    with open(tmp_path / "rows.jsonl", "a") as rows:
        rows.write('{"messages": [}\n')
    done = CliRunner().invoke(main, ["train", str(file)])
    assert done.exit_code == 2 and "rows.jsonl:49" in done.output and "Traceback" not in done.output
    skipping = CliRunner().invoke(
        main, ["train", str(file), "stages.only.data.on_bad_rows=skip", "stages.only.train.max_steps=1"]
    )
    assert skipping.exit_code == 0, skipping.output
    assert "rows.jsonl" in (tmp_path / "run" / "only" / "data_report.json").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As a command that a shell reads back, whatever the file is called."""
    file = run_file(tiny_model_dir, tmp_path).rename(tmp_path / "my run's.yaml")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "align",
        "train",
        str(file),
        "stages.only.train.num_train_epochs=200",
    ]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    root = tmp_path / "run" / "only" / "checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoint.steps(root) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGINT
    step = checkpoint.steps(root)[0]
    assert f"stopped by SIGINT after step {step}, which is saved" in said
    again = said.partition("go on with: ")[2].splitlines()[0]
    assert shlex.split(again) == ["align", "train", str(file), "stages.only.train.num_train_epochs=200", "--resume"]
    refused = CliRunner().invoke(main, ["train", str(file), "stages.only.train.num_train_epochs=200"])
    assert refused.exit_code == 2 and "--resume" in refused.output


def test_check_prints_each_finding_once_for_rows_of_both_sides(tiny_model_dir: Path, tmp_path: Path) -> None:
    """48 rows, some of them held out, all longer than 4 tokens: one finding over 48 rows, not one for each side."""
    file = run_file(tiny_model_dir, tmp_path)
    cut = ["stages.only.data.max_length=4", "stages.only.data.truncation_mode=keep_end"]
    done = CliRunner().invoke(main, ["train", str(file), "--check", *cut], env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "truncation: " in line]
    assert "48 rows" in line


def test_a_process_that_fails_leaves_the_first_one_time_to_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun ends the others once one has failed: the first was ended before it had printed every process's mistake.

    A mistake of one process alone is its own to report; of a worker of align's the supervisor does.
    """
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank, again, pause in (("0", "align train run.yaml", []), ("1", "align train run.yaml", [5.0])):
        waited.clear()
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(AlignError), _first_reports(again):
            raise AlignError("is not there")
        assert waited == pause
    waited.clear()
    with pytest.raises(SystemExit) as ended, _first_reports():
        raise AlignError("is not there")
    assert ended.value.code == 2 and waited == []
