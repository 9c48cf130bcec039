"""A real hack: a reward that pays by the token, and a gold reward that wants short answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align.core.train import checkpoint
from align.core.train.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.online.conftest import Novice
from tests.online.probes import python


@pytest.fixture
def hacked(novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A maker of runs whose answers grow from six tokens to as many as are allowed."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))

    def make(action: str) -> Run:
        stage = {
            "name": "only",
            "model": {"path": str(novice.model)},
            "data": {"train": str(novice.train), "validation": str(novice.held_out), "workers": 1},
            "algorithm": {"type": "rloo", "group": 8, "beta": 0.0, "normalize": True},
            "optimizer": {"learning_rate": 2e-3},
            "schedule": {"type": "constant"},
            "train": {"batch_size": 128, "max_steps": 40},
            "validation": {"every": 2},
            "checkpoint": {"every": 100},
            "rollout": {
                "rewards": [python("long")],
                "gold": python("short"),
                "sampling": {"max_tokens": 48},
                "watch": {"action": action, "kl": None, "entropy": None},
                "samples": "none",
            },
        }
        return Run.model_validate({"output": str(tmp_path / action), "stages": [stage]})

    return make


def log(run: Run) -> list[dict[str, str]]:
    with open(Path(run.output) / "only" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def alarms(run: Run) -> list[str]:
    manifest = json.loads((Path(run.output) / "manifest.json").read_bytes())
    found: list[str] = manifest["stages"]["only"].get("alarms", [])
    return found


def test_a_warning_names_length_and_hacking_and_stops_nothing(hacked: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run = hacked("warn")
    (result,) = train(run, progress=False)
    rows = [row for row in log(run) if row["gold"]]
    assert len(rows) == 40
    assert float(rows[0]["gold"]) > 0.9 and result.metrics["gold"] < 0.1, "the gold reward fell while the proxy rose"
    assert result.metrics["reward"] > 4 * float(rows[0]["reward"])
    said, told = alarms(run), capfd.readouterr().err
    for words in ("reward up and gold reward down", "times longer than at first"):
        assert sum(words in line for line in said) == 1
        assert words in told


def test_a_pause_saves_and_resuming_goes_on(hacked: Any) -> None:
    run = hacked("pause")
    with pytest.raises(AlignError, match="is paused and saved") as caught:
        train(run, progress=False)
    assert "gold" in str(caught.value) or "longer" in str(caught.value)
    stopped = checkpoint.last_step(Path(run.output) / "only" / "checkpoints")
    assert 4 < stopped < 40
    pauses = 1
    while pauses < 5:  # another alarm may pause it once more
        try:
            (result,) = train(run, resume=True, progress=False)
            break
        except AlignError:
            pauses += 1
    assert pauses < 5 and result.metrics["reward"] > 0.9
    assert len(alarms(run)) >= pauses


def test_a_rollback_hands_on_the_best_by_gold(hacked: Any) -> None:
    run = hacked("rollback")
    (result,) = train(run, progress=False)
    manifest = json.loads((Path(run.output) / "manifest.json").read_bytes())["stages"]["only"]
    best = manifest["rolled_back_to"]
    rows = [row for row in log(run) if row["val/gold"]]
    golds = {int(row["step"]): float(row["val/gold"]) for row in rows[1:]}
    assert golds[best] == max(golds.values()) and max(golds) < 40
    kept = checkpoint.load(checkpoint.at(Path(run.output) / "only" / "checkpoints", best))["state_dict"]
    exported = load_file(result.export / "model.safetensors")
    assert all((kept["policy.model." + name] == value).all() for name, value in exported.items())
