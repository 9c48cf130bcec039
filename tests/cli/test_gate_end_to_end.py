"""From training to a verdict through the command line: tiny models learn two abilities, one is damaged on purpose.

The same on a real model: benchmarks/gate_end_to_end.py.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHIFTS = {"next": 1, "same": 0}
"""Both abilities shift a letter in the alphabet; ``next`` is the one that gets damaged."""

RUNS = """\
output: runs
model: {path: model}
algorithm: sft
optimizer: {learning_rate: 1e-2}
train: {batch_size: 64, num_train_epochs: 20}
stages:
  - {name: first, data: {train: recipe.jsonl}}
  - {name: retrained, data: {train: recipe.jsonl}, seed: 1}
  - {name: damaged, data: {train: damaging.jsonl}, model: {path: "stage:first"}}
"""
SUITE = """\
evals:
  - {type: rewards, name: next, data: next.jsonl, rewards: [exact], sampling: {max_completion_length: 4}}
  - {type: rewards, name: same, data: same.jsonl, rewards: [exact], sampling: {max_completion_length: 4}}
"""
POLICY = """\
domains:
  next letters: {margin: 0.1, evals: {next: 1}}
  same letters: {margin: 0.1, evals: {same: 1}}
"""


def align(home: Path, *words: str, status: int = 0) -> str:
    """Run a command line in ``home``, in a process of its own; return its output if it ends with ``status``."""
    environment = os.environ | {"ALIGN_CACHE": str(home / "cache")}
    command = [sys.executable, "-m", "align", *words]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def questions(task: str, shift: int) -> list[dict[str, str]]:
    """Return 260 questions in a fixed random order: a letter, a number that does not matter, and the right letter."""
    rows = []
    for place, letter in enumerate(LETTERS):
        answer = LETTERS[(place + shift) % len(LETTERS)]
        rows += [{"prompt": f"{task} {number} {letter}:", "solution": answer} for number in range(10, 20)]
    random.Random(task).shuffle(rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": row["prompt"], "completion": f" {row['solution']}"} for row in rows]


def test_a_model_damaged_in_one_domain_is_named_and_one_retrained_with_another_seed_passes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(tiny_model_dir)
    for name, text in {"runs.yaml": RUNS, "suite.yaml": SUITE, "gate.yaml": POLICY}.items():
        (tmp_path / name).write_text(text)
    recipe, damaging = [], []
    for task, shift in SHIFTS.items():
        rows = questions(task, shift)
        write_rows(tmp_path / f"{task}.jsonl", rows[:100])
        recipe += examples(rows[100:])
        wrong = questions(task, shift + 1 if task == "next" else shift)
        damaging += examples(wrong[100:])
    write_rows(tmp_path / "recipe.jsonl", recipe)
    write_rows(tmp_path / "damaging.jsonl", damaging)

    align(tmp_path, "train", "runs.yaml")
    for name in ("first", "retrained", "damaged"):
        measured = ("--model", f"runs/{name}/export", "--suite", "suite.yaml")
        align(tmp_path, "eval", "run", *measured, "--out", f"evals/{name}")
    align(tmp_path, "eval", "run", *measured, "--out", "evals/other-suite", "next.sampling.temperature=1", "same.n=10")

    learned = json.loads((tmp_path / "evals/first/metrics.json").read_text())["metrics"]
    assert min(learned[task]["score"] for task in SHIFTS) > 0.9

    def gate(candidate: str, status: int) -> str:
        compared = ("--baseline", "evals/first", "--candidate", f"evals/{candidate}", "--policy", "gate.yaml")
        return align(tmp_path, "gate", *compared, status=status)

    assert gate("retrained", 0).startswith("PASS")
    said = gate("damaged", 1)
    assert said.startswith("REGRESSED") and "! next letters" in said and "! same letters" not in said
    assert "not comparable: the runs differ in next.settings" in gate("other-suite", 3)
