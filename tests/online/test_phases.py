"""Whole online runs on a tiny model: dead groups, abstaining, what is kept, and stopping inside a phase."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from align.core.config import run_file
from align.core.data.batch import MicroBatch
from align.core.engine import checkpoint
from align.core.generation.generator_base import Interrupt
from align.core.models.policy import Policy
from align.core.online import phases as online
from align.core.online.phases import RolloutSteps
from align.core.training.launch import stage_runner, train
from align.core.training.reward_stage import generator_and_rewards
from align.core.training.run_directory import RunDirectory
from align.core.training.sample_log import read_samples
from align.plugins.generators.local import Local
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.online.probes import python


@pytest.fixture(name="run")
def run_with_reward(run: Any) -> Any:
    """A maker of one-stage grpo runs on twelve numbered prompts, by the name of their reward."""

    def make(reward: str, name: str = "run", rollout: dict[str, Any] | None = None, **sections: Any) -> Run:
        made: Run = run(name, {"rewards": [python(reward)], **(rollout or {})}, **sections)
        return made

    return make


def log(run: Run) -> list[dict[str, str]]:
    with open(Path(run.output) / "only" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def samples(run: Run, phase: int) -> list[dict[str, Any]]:
    return read_samples(Path(run.output) / "only" / "samples" / f"phase-{phase:06d}.parquet")


def test_every_prompt_is_asked_once_an_epoch_and_no_answer_twice_alike(run: Any) -> None:
    """12 prompts, 4 a phase: three phases are an epoch, in an order of its own."""
    made = run("low_ids", train={"batch_size": 16, "max_steps": 6})
    train(made, progress=False)
    epochs = [[row["source"] for phase in phases for row in samples(made, phase)] for phases in ((1, 2, 3), (4, 5, 6))]
    for sources in epochs:
        assert set(Counter(sources).values()) == {4} and len(set(sources)) == 12
    assert epochs[0] != epochs[1]
    answers = [row["completion"] for phase in range(1, 7) for row in samples(made, phase)]
    assert len(set(answers)) > 0.9 * len(answers)
    assert [row["rollout/prompts"] for row in log(made)] == ["4.0"] * 6


@pytest.mark.parametrize(
    ("prompts", "answers", "batches", "passes", "epochs", "phases", "steps"),
    [
        (3, 8, 1, 1, 1, [2, 1], 2),  # 2 prompts a phase
        (5, 16, 1, 1, 1, [4, 1], 2),  # 4 a phase: none is left unasked
        (3, 8, 1, 1, 2, [2, 2, 2], 3),
        (5, 8, 2, 2, 1, [4, 1], 6),  # 4 a phase in 2 batches, each learned from twice; what is left fills one
        (3, 16, 1, 1, 1, [3], 1),
        (4, 8, 1, 1, 0.5, [2], 1),
    ],
)
def test_an_epoch_asks_each_prompt_once(
    run: Any,
    tmp_path: Path,
    prompts: int,
    answers: int,
    batches: int,
    passes: int,
    epochs: float,
    phases: Any,
    steps: int,
) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"the sea {i}"}) + "\n" for i in range(prompts)))
    made = run(
        "low_ids",
        rollout={"batches": batches},
        data={"train": str(file), "dataset_num_proc": 1},
        algorithm={"type": "grpo", "num_generations": 4, "num_iterations": passes},
        train={"batch_size": answers, "num_train_epochs": epochs},
    )
    train(made, progress=False)
    asked = [[row["source"] for row in samples(made, phase)[::4]] for phase in range(1, len(phases) + 1)]
    assert [len(sources) for sources in asked] == phases
    counts = Counter(source for sources in asked for source in sources)
    assert len(counts) == min(prompts, round(prompts * epochs)) and set(counts.values()) == {max(1, int(epochs))}
    rows = log(made)
    assert len(rows) == steps and float(rows[-1]["epoch"]) == pytest.approx(epochs)


def test_groups_without_a_difference_stay_leave_or_are_replaced(run: Any) -> None:
    """Prompts with an even number are dead: half of them. Kept ones share the average, dropped ones do not."""
    gradients, dead, asked = {}, {}, {}
    for policy in ("keep", "drop", "refill"):
        made = run("by_prompt", policy, {"zero_std_groups": policy}, train={"batch_size": 48, "max_steps": 1})
        train(made, progress=False)
        (row,) = log(made)
        gradients[policy] = float(row["grad_norm"])
        dead[policy], asked[policy] = float(row["rollout/zero_std_groups"]), float(row["rollout/prompts"])
        assert float(row["frac_reward_zero_std"]) == dead[policy] / asked[policy]
    assert (dead["keep"], asked["keep"]) == (6, 12) == (dead["drop"], asked["drop"])
    tokens = [
        (int(row["source"].rpartition(":")[2]) % 2, row["length"]) for row in samples(run("by_prompt", "keep"), 1)
    ]
    alive = sum(length for line, length in tokens if line == 0)  # the first line is prompt 0
    share = sum(length for _, length in tokens) / alive
    assert share > 1.8
    assert gradients["drop"] == pytest.approx(share * gradients["keep"], rel=1e-4)
    assert asked["refill"] - dead["refill"] == 12, "refilled until twelve groups are alive"


def test_refilling_ends_with_its_budget(run: Any) -> None:
    made = run(
        "equal", rollout={"zero_std_groups": "refill", "refill_tokens": 100}, train={"batch_size": 16, "max_steps": 1}
    )
    (result,) = train(made, progress=False)
    # a round is 4 prompts x 4 answers x up to 6 tokens: the second reaches 100 tokens
    assert result.metrics["rollout/prompts"] == 8 == result.metrics["rollout/zero_std_groups"]
    assert result.metrics["loss"] == 0 and result.metrics["grad_norm"] == 0


def test_a_phase_that_teaches_nothing_moves_nothing(run: Any) -> None:
    """Neither the loss nor AdamW's momentum: the weights are those before, to the bit."""
    taught = run("low_ids", "taught", train={"batch_size": 16, "max_steps": 1})
    train(taught, progress=False)
    export = Path(taught.output) / "only" / "export"
    for policy in ("drop", "refill"):
        made = run(
            "equal",
            policy,
            {"zero_std_groups": policy},
            model={"path": str(export)},
            train={"batch_size": 16, "max_steps": 2},
        )
        train(made, progress=False)
        hashes = [
            hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
            for place in (export, Path(made.output) / "only" / "export")
        ]
        assert hashes[0] == hashes[1], policy


def test_abstaining_leaves_the_loss_and_the_baseline(run: Any) -> None:
    made = run("odd_abstains", train={"batch_size": 16, "max_steps": 1})
    (result,) = train(made, progress=False)
    rows = samples(made, 1)
    silent = [row for row in rows if row["reward"] is None]
    assert 0 < len(silent) < len(rows)
    assert result.metrics["rollout/masked"] == len(silent) / len(rows) == result.metrics["rewards/python/abstained"]
    known = [row["reward"] for row in rows if row["reward"] is not None]
    assert result.metrics["reward"] == pytest.approx(sum(known) / len(known))


def test_a_reward_that_is_no_number_is_an_error_of_that_answer(run: Any) -> None:
    made = run("not_a_number", rollout={"rewards": [python("not_a_number"), python("low_ids")]})
    (result,) = train(made, progress=False)
    assert result.metrics["rewards/python/error"] == 1.0
    row = samples(made, 1)[0]
    assert row["parts"] == {"python": None, "python_2": pytest.approx(row["reward"] / 2)}


def test_weights_and_parts_make_the_sum(run: Any) -> None:
    made = run("low_ids", rollout={"rewards": [python("low_ids", weight=2.0), python("equal", weight=0.5)]})
    train(made, progress=False)
    for row in samples(made, 1):
        assert row["reward"] == pytest.approx(2 * row["parts"]["python"] + 0.5 * row["parts"]["python_2"])


def test_the_gold_reward_is_measured_and_never_learned_from(run: Any) -> None:
    plain, watched = run("low_ids", "plain"), run("low_ids", "watched", {"gold": python("equal")})
    for made in (plain, watched):
        train(made, progress=False)
    exports = [(Path(made.output) / "only" / "export" / "model.safetensors").read_bytes() for made in (plain, watched)]
    assert exports[0] == exports[1]
    assert {row["gold"] for row in log(watched)} == {"0.5"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"batch_size": 10}}, ["train.batch_size", "groups of 4", "multiple of 4"]),
        ({"algorithm": {"type": "ppo"}, "rollout": {"zero_std_groups": "drop"}}, ["asks each prompt once"]),
        ({"rollout": {"sampling": {"top_p": 0.9}}}, ["rollout.sampling", "under the policy", "top_p"]),
        (
            {"rollout": {"sampling": {"max_completion_length": 5000}}},
            ["max_completion_length", "512 positions", "prompts.jsonl:", "for 12 of 12 prompts", "take at most 50"],
        ),
        ({"data": {"train": "overlong"}}, ["prompts.jsonl.long:2\n    has ", "no answer fits", "data.max_length: 506"]),
        ({"rollout": {"rewards": ["math"]}}, ["prompts.jsonl:1", "solution", "7 rows more"]),
        ({"rollout": {"generator": "endpoint"}}, ["endpoint"]),
    ],
)
def test_what_cannot_work_is_said_before_training(
    run: Any, tmp_path: Path, sections: dict[str, Any], words: list[str]
) -> None:
    rollout = sections.pop("rollout", {})
    if rollout.get("generator") == "endpoint":
        rollout["generator"] = {"type": "endpoint", "url": "http://127.0.0.1:9", "model": "x"}
    if "data" in sections:
        long = tmp_path / "prompts.jsonl.long.jsonl"
        long.write_text('{"prompt": "the sea"}\n' + json.dumps({"prompt": "zq " * 400}) + "\n")
        sections["data"] = {"train": str(long), "dataset_num_proc": 1, "max_length": 4096}
        words = [word.replace("prompts.jsonl.long:", "prompts.jsonl.long.jsonl:") for word in words]
    with pytest.raises(AlignError) as caught:
        train(run("low_ids", rollout=rollout, **sections), progress=False)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(Path(run("low_ids").output).rglob("metrics.csv"))


def test_sampling_from_another_distribution_needs_no_refusal_where_no_ratio_is_used(run: Any) -> None:
    made = run(
        "low_ids", rollout={"sampling": {"top_p": 0.9, "max_completion_length": 6}}, algorithm={"type": "online_dpo"}
    )
    (result,) = train(made, progress=False)
    assert result.metrics["reward"] > 0


def test_sigterm_between_phases_saves_and_resumes_to_the_bit(run: Any, tmp_path: Path) -> None:
    """The signal comes while answers are sampled: nothing of the phase is kept, and it is sampled again alike."""
    sections = {"train": {"batch_size": 16, "max_steps": 10}, "checkpoint": {"save_steps": 3}}
    rollout = {"sampling": {"max_completion_length": 64}, "batches": 2}
    quiet = run("low_ids", "quiet", rollout, **sections)
    train(quiet, progress=False)
    stopped = run("low_ids", "stopped", rollout, **sections)
    file = tmp_path / "stopped.yaml"
    file.write_text(run_file.dump(stopped))
    command = [sys.executable, "-W", "ignore", "-m", "align", "train", str(file), "--quiet"]
    started = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    root = Path(stopped.output) / "only" / "checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoint.steps(root):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 128 + signal.SIGTERM
    train(stopped, resume=True, progress=False)
    for name in ("metrics.csv", "export/model.safetensors", "samples/phase-000005.parquet"):
        one, two = ((Path(made.output) / "only" / name).read_bytes() for made in (quiet, stopped))
        assert one == two, name


@pytest.mark.parametrize(
    "algorithm",
    [
        {"type": "grpo", "num_generations": 4, "num_iterations": 2},
        {"type": "ppo", "num_iterations": 2, "kl_target": 0.1},
    ],
)
def test_resuming_at_every_step_of_a_phase_is_exact(run: Any, algorithm: dict[str, Any]) -> None:
    """Two batches, two passes: four steps over the same answers, stopped after each of them."""
    sections = {
        "algorithm": algorithm,
        "train": {"batch_size": 16, "max_steps": 8},
        "checkpoint": {"save_steps": 1, "save_total_limit": 9},
    }
    whole = run("low_ids", "whole", {"batches": 2}, **sections)
    train(whole, progress=False)
    expected = {
        name: (Path(whole.output) / "only" / name).read_bytes() for name in ("metrics.csv", "export/model.safetensors")
    }
    for step in range(1, 8):
        again = whole.model_copy(update={"output": whole.output})
        stage = Path(again.output) / "only"
        (stage / "done.json").unlink()
        for later in [s for s in checkpoint.steps(stage / "checkpoints") if s > step]:
            for part in checkpoint.at(stage / "checkpoints", later).iterdir():
                part.unlink()
            checkpoint.at(stage / "checkpoints", later).rmdir()
        train(again, resume=True, progress=False)
        assert {name: (stage / name).read_bytes() for name in expected} == expected, f"resumed after step {step}"


def test_a_phase_interrupted_while_refilling_leaves_no_trace(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round has moved prompts and running means on; what is then saved is what was before it."""
    rewards = [python("by_prompt", normalize=True)]
    made = run(
        "by_prompt", rollout={"rewards": rewards, "zero_std_groups": "refill"}, train={"batch_size": 16, "max_steps": 1}
    )
    ready = stage_runner(RunDirectory(made), made.stages[0], progress=False).prepare()
    phases = ready.steps
    assert isinstance(phases, RolloutSteps)
    before = phases.state_dict()
    monkeypatch.setattr(phases.collector, "stop", lambda: phases.state_dict()["place"] > 0)
    with generator_and_rewards(phases.collector), pytest.raises(Interrupt):
        next(iter(phases.loader(0, 0)))
    assert phases.state_dict() == before


def test_a_reward_that_fails_stops_the_run_and_loses_nothing(run: Any) -> None:
    """Without a time limit its failure is the run's; the step before it is saved, off the interval too."""
    made = run("breaks", train={"batch_size": 16, "max_steps": 6}, checkpoint={"save_steps": 100})
    with pytest.raises(AlignError) as caught:
        train(made, progress=False)
    assert all(word in str(caught.value) for word in ("the judge went home", "step 3 is saved", "--resume"))
    assert checkpoint.last_step(Path(made.output) / "only" / "checkpoints") == 3


def test_an_evaluation_that_nobody_scores_is_not_judged(run: Any, tmp_path: Path) -> None:
    data = {
        "train": str(tmp_path / "prompts.jsonl"),
        "validation": str(tmp_path / "prompts.jsonl"),
        "dataset_num_proc": 1,
    }
    (result,) = train(run("silent", data=data), progress=False)
    assert "val/reward" not in result.metrics and result.metrics["rewards/python/abstained"] == 1


def test_normalising_changes_what_is_learned_and_not_what_is_told(run: Any) -> None:
    """The scores of each answer, the reward that is logged and the held-out reward stay on their own scale."""
    made = run("low_ids", rollout={"rewards": [python("low_ids", normalize=True)]})
    (result,) = train(made, progress=False)
    for row in samples(made, 2):
        assert row["reward"] == row["parts"]["python"]
    assert 0 < result.metrics["reward"] < 1


def test_held_out_prompts_get_the_likeliest_answer_whatever_the_temperature(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sampling of the run is watched: training prompts at the stage's temperature, held-out ones at 0."""
    asked: list[tuple[int, float]] = []
    generate = Local.generate

    def watched(self: Any, requests: Any, sampling: Any, **how: Any) -> Any:
        asked.append((sum(len(request.seeds) for request in requests), sampling.temperature))
        return generate(self, requests, sampling, **how)

    monkeypatch.setattr(Local, "generate", watched)
    data = {"train": str(tmp_path / "prompts.jsonl"), "validation_fraction": 0.25, "dataset_num_proc": 1}
    made = run("low_ids", rollout={"sampling": {"max_completion_length": 6, "temperature": 1.7}}, data=data)
    train(made, progress=False)
    # Two held-out prompts, once each, before the first step, after each pass over the rest, and at the end.
    greedy = [answers for answers, temperature in asked if temperature == 0.0]
    assert greedy and set(greedy) == {2}
    assert {answers for answers, temperature in asked if temperature == 1.7} == {16}
    assert {temperature for _, temperature in asked} == {0.0, 1.7}


def test_the_sync_gate_gets_the_run_files_tolerance(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []

    def gate(*_: Any, tolerance: float | None) -> float:
        given.append(tolerance)
        return 0.0

    monkeypatch.setattr(Local, "shares_weights", False)
    monkeypatch.setattr("align.core.online.phases.check_sync", gate)
    train(run("low_ids", rollout={"sync_tolerance": 0.125}, train={"batch_size": 16, "max_steps": 2}), progress=False)
    assert given == [0.125, 0.125]


def test_the_trainer_measures_at_the_temperature_that_answers_were_sampled_at(run: Any) -> None:
    """Generator and trainer are the same weights here, so their log-probabilities differ by rounding alone."""
    rollout = {"sampling": {"max_completion_length": 6, "temperature": 0.5}}
    rollout |= {"importance_sampling_correction": {"type": "truncate"}}
    made = run("low_ids", rollout=rollout, train={"batch_size": 16, "max_steps": 1})
    train(made, progress=False)
    assert float(log(made)[0]["sampling/sampling_logp_difference/max"]) < 1e-3


def test_the_second_step_of_a_phase_is_weighed_by_what_the_policy_was_before_the_first(run: Any) -> None:
    """The narrowest clip shows it: no ratio is outside it in the first step, some are in the second."""
    algorithm = {"type": "grpo", "num_generations": 4, "epsilon": 1e-4}
    made = run("low_ids", rollout={"batches": 2}, algorithm=algorithm, train={"batch_size": 16, "max_steps": 2})
    train(made, progress=False)
    first, second = (float(row["clip_ratio/region_mean"]) for row in log(made))
    assert first == 0 < second


TWICE: dict[str, Any] = {"type": "grpo", "num_generations": 4, "num_iterations": 2}


def test_the_policy_does_not_measure_again_what_it_sampled(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One completion a phase tries it; the steps are those of a policy that measures all of them, to rounding."""
    passes: list[int] = []
    plain = online.detached_logp

    def counted(policy: Policy, micro: MicroBatch) -> torch.Tensor:
        passes.append(micro.last_B.numel())
        return plain(policy, micro)

    monkeypatch.setattr(online, "detached_logp", counted)
    sampling = {"max_completion_length": 6, "temperature": 0.7}
    taken = run("low_ids", "taken", {"sampling": sampling}, algorithm=TWICE)
    train(taken, progress=False)
    assert passes == [1, 1]
    passes.clear()
    monkeypatch.setattr(online, "SAME_LOGP", -1.0)  # no generator is as near as that
    measured = run("low_ids", "measured", {"sampling": sampling}, algorithm=TWICE)
    train(measured, progress=False)
    assert sum(passes) == 2 * (1 + 16)
    for name in ("loss", "grad_norm", "clip_ratio/region_mean", "entropy"):
        for mine, theirs in zip(log(taken), log(measured), strict=True):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6)
    for phase in (1, 2):
        assert [row["completion"] for row in samples(taken, phase)] == [
            row["completion"] for row in samples(measured, phase)
        ]


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"batch_size": 16, "max_steps": 2, "precision": "bf16-mixed"}},
        {"rollout": {"importance_sampling_correction": {"type": "truncate"}}},
    ],
)
def test_what_is_not_the_same_to_rounding_is_measured(
    run: Any, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences: list[int] = []
    plain = online.detached_logp

    def counted(policy: Policy, micro: MicroBatch) -> torch.Tensor:
        sequences.append(micro.last_B.numel())
        return plain(policy, micro)

    monkeypatch.setattr(online, "detached_logp", counted)
    given = {"train": {"batch_size": 16, "max_steps": 2}, **sections}
    train(run("low_ids", algorithm=TWICE, **given), progress=False)
    assert sum(sequences) >= 16


@pytest.mark.parametrize(
    "algorithm", [{"type": "rloo", "beta": 0.1}, {"type": "reinforce", "kl_in": "reward", "baseline": "group"}]
)
def test_a_policy_that_is_its_reference_learns_nothing_from_the_kl(run: Any, algorithm: dict[str, Any]) -> None:
    """Rounding between the two would be the whole gradient, and AdamW would make full steps of it."""
    made = run("equal", algorithm={"num_generations": 4, **algorithm}, train={"batch_size": 16, "max_steps": 3})
    train(made, progress=False)
    assert [float(row["grad_norm"]) for row in log(made)] == [0.0] * 3
