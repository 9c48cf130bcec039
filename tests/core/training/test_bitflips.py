"""A flipped bit in any file that a run writes and reads back: said, or without effect; never believed, no traceback.

(Every bit of every file: ``python -m tests.core.bitflips``.)
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.bitflips import Tally, run_all
from tests.core.runs import run_for, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def test_no_flip_is_believed(tiny_model_dir: Path, tmp_path: Path) -> None:
    found: dict[str, Tally] = run_all(tmp_path, tiny_model_dir, sample=24)
    assert len(found) > 20
    faults = [line for tally in found.values() for line in tally.shown]
    assert not faults, "\n".join(faults)
    told = {name for name, tally in found.items() if tally.counts["refused"] + tally.counts["recovered"]}
    quiet = {name for name in found if name not in told}
    assert not {name for name in quiet if not any(part in name for part in ("MANIFEST", "ref_logp", "sqlite"))}


def damaged(run: Run, name: str, dice: random.Random) -> Path:
    """Flip one bit of a run's file."""
    path = Path(run.output) / name
    content = bytearray(path.read_bytes())
    bit = dice.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return path


def test_a_run_goes_on_to_the_same_weights(
    tiny_model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each file of an interrupted run damaged in turn, and all at once: none of them is the only one that knows."""
    rows = write_rows("sft", tmp_path / "rows.jsonl", 24)
    settings: dict[str, Any] = {"train": {"max_steps": 6, "batch_size": 8}, "checkpoint": {"save_steps": 2}}
    train(whole := run_for("sft", tiny_model_dir, rows, tmp_path / "whole", **settings), progress=False)
    expected = (tmp_path / "whole" / "only" / "export" / "model.safetensors").read_bytes()
    dice = random.Random(0)
    files = ["manifest.json", "only/stage.json", "only/done.json", "only/metrics.csv"]
    files += [f"only/checkpoints/step-00000006/{name}" for name in (checkpoint.MANIFEST, checkpoint.STATE)]
    for names in (*([name] for name in files), files):
        output = tmp_path / "run"
        shutil.copytree(whole.output, output)
        run = whole.model_copy(update={"output": str(output)})
        if names != ["only/done.json"] and names != files:
            (output / "only" / "done.json").unlink()
        paths = [damaged(run, name, dice) for name in names]
        capfd.readouterr()
        (result,) = train(run, resume=True, progress=False)
        assert (result.export / "model.safetensors").read_bytes() == expected, names
        told = capfd.readouterr().err
        for path in paths:
            assert path.name in told or path.parent.name in told, path
        shutil.rmtree(output)


def test_damage_does_not_open_a_stage_for_other_settings(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Without ``stage.json`` the checkpoints tell."""
    rows = write_rows("sft", tmp_path / "rows.jsonl", 24)
    settings: dict[str, Any] = {"train": {"max_steps": 4, "batch_size": 8}, "checkpoint": {"save_steps": 2}}
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "run", **settings)
    train(run, progress=False)
    other = run_for("sft", tiny_model_dir, rows, tmp_path / "run", **settings, optimizer={"learning_rate": 0.5})
    for names in (["only/stage.json"], ["only/stage.json", "only/done.json"]):
        for name in names:
            (tmp_path / "run" / name).write_bytes(b"{")
        with pytest.raises(AlignError, match="started with other settings"):
            train(other, resume=True, progress=False)
    assert train(run, resume=True, progress=False)
