"""``align resume``: going on from a directory, and the proof that going on changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import align
from align.api import resuming
from align.api.resuming import Compared, ResumeProof
from align.cli import main
from align.cli.resume import print_proof
from align.core.config import run_file
from align.core.training.launch import train
from align.core.util import profile
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of twelve steps."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    return run_for("sft", tiny_model_dir, rows, tmp_path / "run", train={"max_steps": 12})


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM during a step."""
    steps = iter(range(1, step))

    def step_done() -> None:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(profile, "step_done", step_done)


def test_a_run_goes_on_from_its_directory_which_may_have_been_moved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run, progress=False)
    whole = (tmp_path / "run" / "only" / "metrics.csv").read_bytes()
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(align.Interrupted):
            train(run.model_copy(update={"output": str(tmp_path / "stopped")}), progress=False)
    (tmp_path / "stopped").rename(tmp_path / "moved")
    (result,) = align.resume(tmp_path / "moved", progress=False)
    assert result.export == tmp_path / "moved" / "only" / "export"
    assert (tmp_path / "moved" / "only" / "metrics.csv").read_bytes() == whole
    assert not (tmp_path / "stopped").exists()


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def test_a_run_is_verified_and_left_as_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By real processes, one of them killed."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(align.Interrupted):
            train(run, progress=False)
    before = contents(tmp_path / "run")
    command = [sys.executable, "-W", "ignore", "-m", "align", "resume", str(tmp_path / "run"), "--verify", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--steps", "2", "16"], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("only: 2 + 16 steps on 1 process, killed after step 2 and resumed\n")
    assert done.stdout.endswith("\nEqual to the bit: resuming changes nothing.\n")
    curve = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in curve] == [str(step) for step in range(1, 19)]
    assert all(row[1] == row[2] and row[3] == row[4] for row in curve)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("repeats", [True, False])
def test_a_difference_is_found_and_laid_where_it_belongs(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], repeats: bool
) -> None:
    """Resuming with another seed in place of the checkpoint's state; or no two runs with the same one."""
    train(run.model_copy(update={"stages": [run.stages[0]]}), progress=False)

    def finish(short: Run, root: Path) -> None:
        (stage,) = short.stages
        odd = Path(short.output).name == "resumed" or (Path(short.output).name == "again" and not repeats)
        changed = stage.model_copy(update={"seed": stage.seed + odd})
        train(short.model_copy(update={"stages": [changed]}), progress=False)

    monkeypatch.setattr(resuming, "_finish", finish)
    monkeypatch.setattr(resuming, "_kill_after", lambda *_: None)
    proof = align.verify_resume(run.output, steps=(1, 1), progress=False)
    assert not proof.identical and proof.deterministic == repeats
    different = {each.name: each.different for each in proof.compared}
    assert different["metrics of every step"] and different["weights"] and different["exported weights"]
    assert different["schedule"] == 0
    print_proof(proof)
    said = capsys.readouterr().out
    assert ("two runs without interruption are: resuming changes this run." in said) == repeats
    assert ("two runs without interruption are not equal either" in said) != repeats


def test_steps_without_a_gradient_are_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a run whose rewards are all alike: only what follows the kill counts."""
    same = [Compared("weights", 8, 0, 0.0)]
    for norm, proved in ((0.0, False), (0.5, True)):
        metrics = [(1, "grad_norm", 2.0, 2.0), (2, "grad_norm", norm, norm)]
        proof = ResumeProof("only", (1, 1), 1, metrics, same)
        assert proof.identical and proof.learned == proved
        print_proof(proof)
        assert ("resuming changes nothing" in capsys.readouterr().out) == proved


def test_bits_are_compared_and_not_values() -> None:
    """Also what numbers hide: a sign of zero, NaN, another dtype, a value that one side lacks."""
    import torch

    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    pairs: list[tuple[Any, Any, int]] = [
        ({"a": nan}, {"a": nan.clone()}, 0),
        ({"a": zero}, {"a": -zero}, 1),
        ({"a": zero}, {"a": zero.double()}, 1),
        ({"a": 1}, {"a": 1, "b": None}, 1),
        ({"a": [1, 2]}, {"a": [1]}, 1),
        ([{"loss": "0.1"}], [{"loss": "0.1"}], 0),
        ([{"loss": "0.1"}], [{"loss": "0.10000001"}], 1),
        ("text", "text", 0),
        ("text", "texts", 1),
    ]
    for one, other, different in pairs:
        assert resuming._compared("", one, other).different == different, (one, other)


def test_what_cannot_go_on_or_be_verified_is_refused(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["resume", str(tmp_path / "nothing")])
    assert (done.exit_code, done.stdout) == (2, "")
    with pytest.raises(AlignError, match=r"holds no run: there is no run\.yaml"):
        align.resume(tmp_path)
    place = tmp_path / "run"
    place.mkdir()
    stage = run.stages[0]
    several = stage.model_copy(update={"devices": stage.devices.model_copy(update={"nodes": 2})})
    (place / "run.yaml").write_text(run_file.dump(run.model_copy(update={"stages": [several]})))
    with pytest.raises(AlignError, match="runs over several nodes"):
        align.verify_resume(place)
    with pytest.raises(AlignError, match="no stage is called dpo\n    its stages: only"):
        align.verify_resume(place, stage="dpo")
