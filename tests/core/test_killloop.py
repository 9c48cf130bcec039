"""SIGKILL at random moments: the resumed run ends with the same bits. (60 kills: ``python -m tests.core.killloop``.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo", "ppo"])
def test_ten_kills_leave_no_trace(algorithm: str) -> None:
    """In a process of its own: it forks, and pytest's process has threads."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.killloop", "--algorithm", algorithm, "--kills", "10"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] >= 10
    assert counts["resumed_from_a_checkpoint"] > 0, "no kill came after a checkpoint, so nothing was shown"
