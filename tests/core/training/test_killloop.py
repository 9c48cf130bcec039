"""SIGKILL at random moments: the resumed run ends with the same bits. (60 kills: ``python -m tests.core.killloop``.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


CASES = {"sft": 10, "dpo": 10, "grpo": 10, "ppo": 10, "early_stop": 4, "rollback": 4, "best_of_n": 4, "lora": 4}
"""Kills of each."""


@pytest.mark.parametrize("name", list(CASES))
def test_kills_leave_no_trace(name: str) -> None:
    """In a process of its own: it forks, and pytest's process has threads."""
    kills = str(CASES[name])
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.killloop", "--algorithm", name, "--kills", kills]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] >= CASES[name]
    assert counts["resumed_from_a_checkpoint"] > 0, "no kill came after a checkpoint, so nothing was shown"
