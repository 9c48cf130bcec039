"""A real hack: a reward that pays by the token, and a gold reward that wants short answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align.core.engine import checkpoint
from align.core.training.launch import train
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
            "data": {"train": str(novice.train), "validation": str(novice.held_out), "dataset_num_proc": 1},
            "algorithm": {"type": "rloo", "num_generations": 8, "beta": 0.0, "normalize_advantages": True},
            "optimizer": {"learning_rate": 2e-3},
            "schedule": {"type": "constant"},
            "train": {"batch_size": 128, "max_steps": 40},
            "validation": {"eval_steps": 2},
            "checkpoint": {"save_steps": 100},
            "rollout": {
                "rewards": [python("long")],
                "gold": python("short"),
                "sampling": {"max_completion_length": 48},
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


class TestNothingToLearnFrom:
    """Said at the phase, at the end and in the manifest, in a run of a single phase too."""

    def of(self, tiny_model_dir: Path, tmp_path: Path, reward: str, steps: int, **sections: Any) -> Run:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"the sea {i}"}) + "\n" for i in range(4)))
        stage = {
            "name": "only",
            "model": {"path": str(tiny_model_dir)},
            "data": {"train": str(prompts), "dataset_num_proc": 1},
            "algorithm": {"type": "grpo", "num_generations": 4},
            "train": {"batch_size": 16, "max_steps": steps},
            "rollout": {
                "rewards": [python(reward)],
                "sampling": {"max_completion_length": 6},
                **sections.pop("rollout", {}),
            },
            **sections,
        }
        return Run.model_validate({"output": str(tmp_path / "run"), "stages": [stage]})

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))

    @pytest.mark.parametrize(
        ("reward", "steps", "words"),
        [
            ("silent", 1, ["no answer was scored", "abstained 100.0 %", "in its only phase no answer was scored"]),
            ("not_a_number", 2, ["error 100.0 %", "its score was nan", "in its 2 phases no answer was scored"]),
            ("equal", 1, ["in every group all answers got the same reward", "in its only phase the answers of each"]),
            ("rounded", 2, ["in every group all answers got the same reward", "in its 2 phases the answers of each"]),
        ],
    )
    def test_in_short_runs(
        self, tiny_model_dir: Path, tmp_path: Path, capfd: Any, reward: str, steps: int, words: list[str]
    ) -> None:
        run = self.of(tiny_model_dir, tmp_path, reward, steps)
        train(run, progress=False)
        told = capfd.readouterr().err
        assert all(word in told for word in words), told
        assert told.count("only, phase 1") == 1 and "only, phase 2" not in told, "once an episode"
        assert len(alarms(run)) == 2 and alarms(run)[1].startswith("learned nothing")
        before = load_file(tiny_model_dir / "model.safetensors")
        after = load_file(Path(run.output) / "only" / "export" / "model.safetensors")
        assert all((after[name] == value).all() for name, value in before.items()), "to the bit"

    @pytest.mark.parametrize(("reward", "said"), [("per_prompt", 0), ("equal", 2)])
    @pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
    def test_an_algorithm_that_compares_prompts_learns_from_groups_of_equal_rewards(
        self, algorithm: str, reward: str, said: int, tiny_model_dir: Path, tmp_path: Path
    ) -> None:
        """A critic or a mean over prompts tells an easy prompt's answers from a hard one's."""
        settings = {"type": algorithm, "num_generations": 4}
        run = self.of(tiny_model_dir, tmp_path, reward, 1, algorithm=settings)
        train(run, progress=False)
        assert len(alarms(run)) == said

    def test_a_stage_that_ends_within_its_only_phase(self, tiny_model_dir: Path, tmp_path: Path, capfd: Any) -> None:
        algorithm = {"type": "grpo", "num_generations": 4, "num_iterations": 3}
        train(self.of(tiny_model_dir, tmp_path, "equal", 2, algorithm=algorithm), progress=False)
        told = capfd.readouterr().err
        assert "only, phase 1" in told and "learned nothing from its rewards: in its only phase" in told

    def test_a_stage_that_learned_in_the_end_did_not_learn_nothing(
        self, tiny_model_dir: Path, tmp_path: Path, capfd: Any
    ) -> None:
        run = self.of(tiny_model_dir, tmp_path, "late", 4)
        train(run, progress=False)
        told = capfd.readouterr().err
        assert told.count("no answer was scored") == 1 and "learned nothing" not in told
        assert [row["reward/scored"] for row in log(run)] == ["0.0", "0.0", "1.0", "1.0"]

    def test_a_run_that_shall_pause_pauses_where_nothing_is_scored(self, tiny_model_dir: Path, tmp_path: Path) -> None:
        run = self.of(tiny_model_dir, tmp_path, "silent", 3, rollout={"watch": {"action": "pause"}})
        with pytest.raises(AlignError, match="no answer was scored") as caught:
            train(run, progress=False)
        assert "is paused and saved" in str(caught.value)

    def test_best_of_n(self, tiny_model_dir: Path, tmp_path: Path, capfd: Any) -> None:
        run = self.of(
            tiny_model_dir, tmp_path, "not_a_number", 1, algorithm={"type": "best_of_n", "num_generations": 4}
        )
        with pytest.raises(AlignError, match="made no row: no answer was scored"):
            train(run, progress=False)
        assert "only, phase 1" in (told := capfd.readouterr().err) and "its score was nan" in told
