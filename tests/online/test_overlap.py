"""Rewards begin while answers are still generated. Shown by the order of events, never by time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align.core.algorithm import contract
from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.generation.generator_base import CompletionGroups, Generator, Interrupt, Request, Sample
from align.core.online.phases import RolloutSteps
from align.core.rewards.reward_base import FunctionReward
from align.core.training.launch import stage_runner, train
from align.core.training.reward_stage import generator_and_rewards
from align.core.training.run_directory import RunDirectory
from align.core.training.sample_log import read_samples
from align.plugins.generators.local import Local
from align.schemas.errors import AlignError
from align.schemas.run import Run, Sampling
from tests.online.probes import python

LIMIT = 120
"""Seconds after which a test that would wait for ever fails."""
ONE_BY_ONE = {"type": "local", "batch_tokens": 1}
"""Each answer in a batch of its own, so that a stop is seen between two groups."""


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A maker of one-stage grpo runs on twelve numbered prompts."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the sea {i}"}) + "\n" for i in range(12)))

    def make(name: str, rollout: Mapping[str, Any], **sections: Any) -> Run:
        stage = {
            "name": "only",
            "model": {"path": str(tiny_model_dir)},
            "data": {"train": str(prompts), "dataset_num_proc": 1},
            "algorithm": {"type": "grpo", "num_generations": 4},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"batch_size": 16, "max_steps": 4},
            "rollout": {"sampling": {"max_completion_length": 6}, **rollout},
            **sections,
        }
        return Run.model_validate({"output": str(tmp_path / name), "stages": [stage]})

    return make


def left(run: Run) -> dict[str, bytes]:
    """The bytes of log, weights and samples that a run left."""
    stage = Path(run.output) / "only"
    files = [stage / "metrics.csv", stage / "export" / "model.safetensors", *stage.glob("samples/*.parquet")]
    return {file.name: file.read_bytes() for file in files}


class Events:
    """What happened, in order: ``group``, ``scored`` (with the number of answers, and whether in the main thread),
    ``generated``. After its first group the generator waits for ``until``, which gets the generator's ``stop``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: Callable[[Events, Any], bool] = lambda *_: True) -> None:
        self.seen: list[Any] = []
        self.begun = threading.Event()
        generate, score = Local.generate, FunctionReward.score

        def generate_watched(local: Local, requests: Any, sampling: Any, *, on_group: Any, stop: Any) -> Any:
            waited = False

            def finished(number: int, samples: Sequence[Sample]) -> None:
                nonlocal waited
                self.seen.append("group")
                on_group(number, samples)
                if not waited:
                    waited = True
                    assert until(self, stop), "what is waited for never happens while others are generated"

            found = generate(local, requests, sampling, on_group=finished, stop=stop)
            self.seen.append("generated")
            return found

        def score_watched(reward: FunctionReward, answers: Any) -> Any:
            main = threading.current_thread() is threading.main_thread()
            self.seen.append(("scored", len(answers), main))
            self.begun.set()
            return score(reward, answers)

        monkeypatch.setattr(Local, "generate", generate_watched)
        monkeypatch.setattr(FunctionReward, "score", score_watched)


def test_a_reward_begins_before_generation_ends(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives what it gives afterwards, to the byte."""
    serial = run("serial", {"rewards": [python("low_ids_by_server", overlap=False)]})
    train(serial, progress=False)
    events = Events(monkeypatch, until=lambda events, _: events.begun.wait(LIMIT))
    early = run("early", {"rewards": [python("low_ids_by_server")]})
    train(early, progress=False)
    assert left(early) == left(serial)
    # The first answers scored are those of the first group alone, in another thread, before generation has ended.
    assert events.seen.index(("scored", 4, False)) < events.seen.index("generated")
    assert sum(event[1] for event in events.seen if event[0] == "scored") == 4 * 16


def test_a_plain_function_gets_all_answers_in_one_call_and_in_the_main_thread(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(monkeypatch)
    train(run("plain", {"rewards": [python("low_ids")]}), progress=False)
    assert events.seen == [*["group"] * 4, "generated", ("scored", 16, True)] * 4


MIXED = [
    lambda overlap: [python("low_ids", overlap=overlap)],
    lambda overlap: [python("low_ids", overlap=overlap, timeout=60.0)],
    lambda overlap: [
        python("low_ids", weight=2.0, normalize=True),
        python("odd_abstains", overlap=overlap, normalize=True),
        python("low_ids_by_server", overlap=overlap),
    ],
]


@pytest.mark.parametrize("rewards", MIXED, ids=["function", "workers", "several"])
@pytest.mark.parametrize("policy", ["keep", "refill"])
def test_what_is_learned_does_not_depend_on_when_it_was_scored(run: Any, rewards: Any, policy: str) -> None:
    """With a gold reward, rewards of both kinds, running means, abstaining, and groups that are replaced."""
    made = []
    for overlap in (False, True):
        rollout = {"rewards": rewards(overlap), "gold": python("by_prompt", overlap=overlap)}
        made.append(run(f"run-{overlap}", {**rollout, "zero_std_groups": policy}))
        train(made[-1], progress=False)
    assert left(made[0]) == left(made[1])


def test_a_reward_that_fails_ends_the_generation_and_stops_the_run(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(events: Events, stop: Callable[[], bool]) -> bool:
        """Wait until the reward has failed, which the generator sees as a wish to stop; it fails at the fourth step."""
        if events.seen.count("generated") < 3:
            return True
        waiting = threading.Event()
        return any(stop() or waiting.wait(0.01) for _ in range(100 * LIMIT))

    events = Events(monkeypatch, until=failed)
    rollout = {"rewards": [python("server_breaks")], "generator": ONE_BY_ONE}
    made = run("run", rollout, train={"batch_size": 16, "max_steps": 6})
    with pytest.raises(AlignError) as caught:
        train(made, progress=False)
    assert all(word in str(caught.value) for word in ("the judge went home", "step 3 is saved", "--resume"))
    assert checkpoint.last_step(Path(made.output) / "only" / "checkpoints") == 3
    assert events.seen.count("generated") == 3, "the fourth generation was ended early"
    assert not [thread for thread in threading.enumerate() if thread.name == "align-python"]


def test_an_interrupt_waits_for_the_call_under_way_and_leaves_no_trace(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("run", {"rewards": [python("low_ids_by_server", normalize=True)], "generator": ONE_BY_ONE})
    ready = stage_runner(RunDirectory(made), made.stages[0], progress=False).prepare()
    phases = ready.steps
    assert isinstance(phases, RolloutSteps)
    before = phases.state_dict()
    events = Events(monkeypatch, until=lambda events, _: events.begun.wait(LIMIT))
    monkeypatch.setattr(phases.collector, "stop", events.begun.is_set)
    with generator_and_rewards(phases.collector), pytest.raises(Interrupt):
        next(iter(phases.loader(0, 0)))
    assert phases.state_dict() == before
    assert "generated" not in events.seen and events.begun.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "align-python"]


def test_two_ranks_learn_what_one_learns(run: Any, tmp_path: Path) -> None:
    """Each rank scores its own groups as they finish; the rewards are the same, and so are the weights to rounding."""
    made = [
        run(f"ranks-{count}", {"rewards": [python("low_ids_by_server")]}, devices={"count": count}) for count in (1, 2)
    ]
    for each in made:
        file = tmp_path / "run.yaml"
        file.write_text(run_file.dump(each))
        command = [sys.executable, "-W", "ignore", "-m", "align", "train", str(file), "--quiet"]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (Path(each.output) / "only" for each in made)
    for phase in range(1, 5):
        rows = [read_samples(stage / "samples" / f"phase-{phase:06d}.parquet") for stage in (one, two)]
        one_said, two_said = ([(row["completion"], row["reward"]) for row in each] for each in rows)
        assert one_said == two_said
    weights = [load_file(stage / "export" / "model.safetensors") for stage in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=0)


# --- the contract ----------------------------------------------------------------------------------------------------


def sample(*tokens: int) -> Sample:
    return Sample(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop")


REQUESTS = [Request(np.array([1], np.int32), (1, 2)), Request(np.array([2], np.int32), (3,))]
GROUPS = [[sample(5), sample(6, 7)], [sample(8)]]


class Scripted(Generator):
    """Reports what it is told to, and returns ``GROUPS``."""

    name = "scripted"
    reports: Sequence[tuple[int, Any]] = ()

    def generate(self, requests: Any, sampling: Any, *, stop: Any = None, on_token: Any = None, on_group: Any) -> Any:
        for number, group in self.reports:
            on_group(number, group)
        return GROUPS


class Unaware(Generator):
    """Written before there was ``on_group``."""

    name = "unaware"

    def generate(self, requests: Any, sampling: Any, *, stop: Any = None, on_token: Any = None) -> Any:
        return GROUPS


@pytest.mark.parametrize(
    ("reports", "order"),
    [([(1, GROUPS[1]), (0, GROUPS[0])], [1, 0]), ([(1, GROUPS[1])], [1, 0]), ([], [0, 1]), (None, [0, 1])],
)
def test_every_group_is_reported_once_whatever_a_generator_does(reports: Any, order: list[int]) -> None:
    generator = Unaware(Generator.Config()) if reports is None else Scripted(Generator.Config())
    generator.reports = reports  # type: ignore[attr-defined]
    seen: list[tuple[int, Any]] = []
    found = contract.generate(generator, REQUESTS, Sampling(), lambda number, group: seen.append((number, list(group))))
    assert found == GROUPS and seen == [(number, GROUPS[number]) for number in order]


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([(0, GROUPS[0]), (0, GROUPS[0])], "reported request 0 twice"),
        ([(2, GROUPS[1])], "reported request 2 twice, or there is none"),
        ([(0, GROUPS[0][:1])], "gave 1 answers to a prompt that has 2 seeds"),
        ([(1, [sample(9)])], "returned other completions of request 1 than it reported"),
    ],
)
def test_what_a_generator_may_not_report(reports: Any, message: str) -> None:
    generator = Scripted(Generator.Config())
    generator.reports = reports
    with pytest.raises(AlignError, match=message):
        contract.generate(generator, REQUESTS, Sampling(), lambda *_: None)


def test_groups_are_whole_when_their_last_completion_is_finished() -> None:
    seen: list[tuple[int, Any]] = []
    groups = CompletionGroups(REQUESTS, lambda number, group: seen.append((number, list(group))))
    groups.add(0, 1, GROUPS[0][1])
    assert not seen
    groups.add(1, 0, GROUPS[1][0])
    groups.add(0, 0, GROUPS[0][0])
    assert seen == [(1, GROUPS[1]), (0, GROUPS[0])] and groups.samples == GROUPS
