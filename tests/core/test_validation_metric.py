"""A metric that nothing measures would silently make every checkpoint the last best one."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.core.train import checkpoint
from align.core.train.launch import train
from align.schemas.errors import AlignError
from tests.core.runs import run_for, write_rows


def test_a_validation_metric_that_is_not_there_stops_before_the_first_step(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows("dpo", tmp_path / "rows.jsonl")
    run = run_for("reward_model", tiny_model_dir, rows, tmp_path / "run", validation={"metric": "acuracy"})
    with pytest.raises(AlignError, match=r"validation\.metric\n.*is 'acuracy'[\s\S]*did you mean 'accuracy'"):
        train(run, progress=False)
    assert checkpoint.steps(tmp_path / "run" / "only" / "checkpoints") == []
