"""The same run over other processes: benchmarks/same_numbers.py, as far as it can be run at each push.

float64, in which rounding is 1e-16 of a number: what an average over ranks does wrong is a million times larger. The
whole matrix, in float32 too, is in benchmarks/results/same_numbers.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
OFFLINE, ONLINE = 1e-10, 1e-6
"""Most that curves and weights may differ. Log-probabilities of completions are kept in float32, rounding 6e-8."""


def lines(tmp: Path, *arguments: str) -> list[dict[str, Any]]:
    """The matrix's lines. In a process of its own: it forks, and pytest's process has threads."""
    out = tmp / "same.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.same_numbers", "--dtypes", "float64", "--steps", "6"]
    done = subprocess.run(
        [*command, "--out", str(out), *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())["lines"]
    return found


def hold(line: dict[str, Any]) -> None:
    """Assert that a line of the matrix is rounding."""
    assert "refused" not in line, line
    limit = ONLINE if "same_samples" in line else OFFLINE
    numbers = [line[name] for name in ("loss", "grad_norm", "held_out", "weights") if line[name] is not None]
    assert len(numbers) == 4 or line["case"] == "best_of_n"
    assert all(number < limit for number in numbers), line
    assert line.get("same_samples", True) and line.get("phases", 2) >= 2, line


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    """Under ddp and fsdp: curves, gradients, held-out losses, weights, and every completion of those that sample.

    Then over other processes in the middle: to one, from a whole optimizer's state to a sharded one, and back to four.
    The run says that it is equal to rounding only.
    """
    cases = ["sft", "kto", "grpo", "grpo-lora", "ppo", "online_dpo", "best_of_n"]
    found = lines(tmp_path, "--worlds", "2", "--algorithms", *cases, "--resumed", "sft", "--changes", "3")
    resumed = [line for line in found if "resumed" in line]
    assert len(resumed) == 3 and all(line["says_so"] for line in resumed)
    for line in found:
        hold(line)
