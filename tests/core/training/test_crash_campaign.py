"""Ranks and supervisors of runs over two ranks, killed: benchmarks/crash_campaign.py, as far as it fits in each push.

The whole campaign is in benchmarks/results/crash_campaign.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.crash_campaign import fingerprint

REPOSITORY = Path(__file__).parents[3]


def test_kills_over_two_ranks_leave_no_trace(tmp_path: Path) -> None:
    """Offline, with ranks that write their own parts; online, an adapter on replicas.

    In a process of its own, since it forks.
    """
    out = tmp_path / "campaign.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.crash_campaign", "--out", str(out), "--kills", "2"]
    done = subprocess.run(
        [*command, "--short", "--settings", "sharded-sft", "ddp-grpo-lora"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["kills"] >= 4 and found["mismatches"] == 0
    assert sum(setting["resumed_from_a_checkpoint"] for setting in found["settings"]) > 0, "nothing was shown"


@pytest.mark.parametrize("change", ["value", "key", "order", "dtype"])
def test_a_fingerprint_holds_every_bit(change: str) -> None:
    import torch

    one = {"weights": {"a": torch.arange(3.0), "b": torch.zeros(2)}, "steps": [1, 2]}
    other = {"weights": {"b": torch.zeros(2), "a": torch.arange(3.0)}, "steps": [1, 2]}
    assert fingerprint(one) == fingerprint(other)
    match change:
        case "value":
            other["weights"]["a"][1] += 1e-7  # type: ignore[call-overload]
        case "key":
            other["weights"]["c"] = other["weights"].pop("a")  # type: ignore[call-overload, union-attr]
        case "order":
            other["steps"] = [2, 1]
        case "dtype":
            other["weights"]["b"] = torch.zeros(2, dtype=torch.int32)  # type: ignore[call-overload]
    assert fingerprint(one) != fingerprint(other)
