"""The estimate of each rank under fsdp, against what two real processes over gloo allocate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.api.estimating import estimate
from align.core.config import run_file
from tests.core.ranks import torchrun
from tests.core.runs import run_for, write_rows
from tests.tiny import save_tiny

SIZES = {"vocab_size": 8192, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}
STAGES: dict[str, dict[str, Any]] = {
    "first": {},
    "adapter": {"model": {"adapter": {"r": 8}}},
    "full": {},
}
"""The first stage's peak holds what a process allocates once, so only its states are compared."""
BAND = 0.05


def test_what_two_ranks_take_under_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of weights, gradients and moments to the byte, and the peak of a step within 5%, on each rank."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", **SIZES, num_attention_heads=6, num_key_value_heads=3)
    rows, made = write_rows("sft", tmp_path / "rows.jsonl"), []
    for name, sections in STAGES.items():
        common = {
            "train": {"max_steps": 3, "batch_size": 8, "micro_batch_size": 4, "shared_prefix": False},
            "data": {"validation_fraction": 0.0},
            "checkpoint": {"save_steps": 1000},
            "devices": {"count": 2, "strategy": "fsdp"},
        }
        (stage,) = run_for("sft", tmp_path / "model", rows, tmp_path / "run", **common, **sections).stages
        made.append(stage.model_copy(update={"name": name}))
    run = run_for("sft", tmp_path / "model", rows, tmp_path / "run").model_copy(update={"stages": made})
    file = tmp_path / "run.yaml"
    file.write_text(run_file.dump(run))
    script = Path(__file__).with_name("rank_memory.py")
    done = torchrun(str(script), str(file), str(tmp_path), tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for stage in estimate(file).stages:
        parts = stage.phases["training"]
        adapter = parts.get("adapter", 0.0)
        assert stage.strategy == "fsdp" and [each.rank for each in stage.ranks] == [0, 1]
        for each, seen in zip(stage.ranks, (rank[stage.name] for rank in ranks), strict=True):
            assert seen["weights"] == pytest.approx(parts["weights"] + adapter, rel=0.002), stage.name
            assert seen["optimizer"] == pytest.approx(parts["optimizer"], rel=0.002), stage.name
            assert seen["gradients"] == pytest.approx(parts["optimizer"] / 2, rel=0.002), stage.name
            if stage.name != "first":
                assert each.phases["training"] == pytest.approx(seen["peak"], rel=BAND), (stage.name, each.rank, seen)
