"""``align train --profile``: the parts of whole runs, and that measuring them changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from align.cli import main
from align.core.config import run_file
from align.core.models.load_and_export import build_policy
from align.core.models.policy import weights_hash
from align.core.training import launch
from align.core.training.launch import train
from align.core.training.run_directory import RunDirectory
from align.core.util.atomic_files import read_json
from align.schemas.hardware import Hardware
from align.schemas.run import Model
from tests.core.runs import run_for, write_rows

EVERY = {"backward", "checkpoint", "data", "evaluation", "export", "forward", "head", "loading", "logging", "loss"}


@pytest.mark.parametrize(
    ("algorithm", "parts"),
    [("sft", EVERY | {"optimizer"}), ("grpo", EVERY | {"optimizer", "generation", "reward", "reference"})],
)
def test_the_parts_of_a_run_sum_to_all_of_it_and_its_numbers_stay(
    algorithm: str, parts: set[str], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows(algorithm, tmp_path / "rows.jsonl")
    outcomes = []
    for profile in (False, True):
        output = tmp_path / f"run-{profile}"
        run = run_for(algorithm, tiny_model_dir, rows, output, train={"max_steps": 6})
        train(run, progress=False, profile=profile)
        policy, _ = build_policy(Model(path=str(output / "only/export")), "language", seed=0, dropout=False)
        outcomes.append((weights_hash(policy), (output / "only/metrics.csv").read_bytes()))
    assert outcomes[0] == outcomes[1]
    assert not (tmp_path / "run-False/only/profile.json").exists()
    facts = read_json(output / "only/profile.json")
    assert facts["steps"] == 6 and facts["device"] == "cpu"
    assert parts <= facts["parts"].keys()
    assert sum(part["share"] for part in facts["parts"].values()) == pytest.approx(1)
    assert sum(part["seconds"] for part in facts["parts"].values()) == pytest.approx(facts["seconds"])
    calls = {part: figures["calls"] for part, figures in facts["parts"].items()}
    assert calls["loss"] == 6
    assert calls["head"] == calls["forward"] + calls["backward"], "the head's own backward is the head's too"


def test_the_command_prints_a_table_of_each_stage(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "run.yaml"
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run")
    file.write_text(run_file.dump(run))
    done = CliRunner().invoke(main, ["train", str(file), "stages.only.train.max_steps=2", "--profile", "--quiet"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("only: ") and line.endswith(" s, 2 steps"))
    shares = {line.split()[0]: line.split()[1] for line in lines[head + 1 :]}
    assert {"forward", "backward", "head", "optimizer", "data"} <= shares.keys()
    assert sum(float(share.rstrip("%")) for share in shares.values()) == pytest.approx(100, abs=1)
    assert (tmp_path / "run/only/profile.json").is_file()


def test_the_seconds_of_all_starts_add_up_with_those_that_were_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(run_for("sft", tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "run"))
    directory.path.mkdir()
    directory.note("only", steps=6)
    clock = iter([0.0, 10.0, 100.0, 105.5])
    monkeypatch.setattr(launch.time, "monotonic", lambda: next(clock))
    hardware = Hardware("cuda", 2, 2, 0, name="H100")
    with launch._noting_time(directory, "only", hardware):
        pass
    with pytest.raises(KeyboardInterrupt), launch._noting_time(directory, "only", hardware):
        raise KeyboardInterrupt
    device = {"accelerator": "cuda", "name": "H100", "devices": 4}
    assert directory.noted("only") == {"steps": 6, "seconds": 15.5, "hardware": device}
