"""Rewards begin while answers are still generated, and a phase is generated while the one before is learned from.

Shown by the order of events, never by time.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from align.core.algorithm import contract
from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.engine.module import AlignModule
from align.core.generation.generator_base import CompletionGroups, Generator, Interrupt, Request, Sample
from align.core.online.phases import PromptGroup, RolloutSteps
from align.core.rewards.reward_base import Answer, FunctionReward, Score
from align.core.rewards.scorer import EARLY_CALLS, GroupScoring
from align.core.training.launch import stage_runner, train
from align.core.training.reward_stage import generator_and_rewards
from align.core.training.run_directory import RunDirectory
from align.core.training.sample_log import SampleLog, read_samples
from align.plugins.generators.local import Local
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice, Run, Sampling
from tests.online.own_weights import OWN
from tests.online.probes import python

LIMIT = 120
"""Seconds after which a test that would wait for ever fails."""
ONE_BY_ONE = {"type": "local", "batch_tokens": 1}
"""Each answer in a batch of its own, so that a stop is seen between two groups."""


def left(run: Run) -> dict[str, bytes]:
    """The bytes of log, weights and samples that a run left."""
    stage = Path(run.output) / "only"
    files = [stage / "metrics.csv", stage / "export" / "model.safetensors", *stage.glob("samples/*.parquet")]
    return {file.name: file.read_bytes() for file in files}


def apart(one: Run, two: Run) -> float:
    """The distance of two runs' weights, over the way that the first has moved."""
    start = load_file(Path(one.stages[0].model.path) / "model.safetensors")
    first, second = (load_file(Path(run.output) / "only" / "export" / "model.safetensors") for run in (one, two))
    moved, gap = (
        torch.cat([(first[name] - other[name]).flatten() for name in first]).norm() for other in (start, second)
    )
    return float(gap / moved)


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


IN_COMPANY = """
import asyncio

sizes, met = [], []


async def low_ids_in_company(completion_ids):
    number = len(sizes)
    sizes.append(len(completion_ids))
    for _ in range(12000):
        if number % 2 or len(sizes) > number + 1:
            met.append(number)
            return [sum(token < 160 for token in ids) / len(ids) for ids in completion_ids]
        await asyncio.sleep(0.01)
    raise RuntimeError("no other call has begun meanwhile")
"""
"""A reward whose calls, by twos, end only together: the first waits until the second has begun."""


def test_an_async_reward_has_two_calls_under_way_at_once(run: Any, tmp_path: Path) -> None:
    """And the scores are those of one call afterwards, to the byte."""
    serial = run("serial", {"rewards": [python("low_ids_by_server", overlap=False)]})
    train(serial, progress=False)
    file = tmp_path / "company.py"
    file.write_text(IN_COMPANY)
    early = run("early", {"rewards": [{"type": "python", "file": str(file), "function": "low_ids_in_company"}]})
    train(early, progress=False)
    assert left(early) == left(serial)
    (module,) = (module for module in sys.modules.values() if getattr(module, "__file__", None) == str(file))
    # Each of a phase's four groups had a call of its own: fewer than ``EARLY_CALLS`` were under way.
    assert module.sizes == [4] * 16 and sorted(module.met) == list(range(16))


class Held:
    """A reward (as ``GroupScoring`` sees one) that scores an answer by its text. Each of its calls ends once ``let_go``
    is set; ``begun`` counts them, and ``most`` is how many were under way at once."""

    choice, overlaps = RewardChoice(type="held"), True

    def __init__(self, parallel: bool, fails: str = "") -> None:
        self.parallel, self.fails = parallel, fails
        self.calls: list[list[str]] = []
        self.begun, self.let_go = threading.Semaphore(0), threading.Event()
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        with self._lock:
            self.calls.append([answer.text for answer in answers])
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.begun.release()
        failing = self.fails in self.calls[-1]
        assert failing or self.let_go.wait(LIMIT)
        with self._lock:
            self.under_way -= 1
        if failing:
            raise AlignError("no more")
        return [Score(float(answer.text)) for answer in answers]

    def begins(self, calls: int) -> None:
        """Wait until that many more calls have begun."""
        assert all(self.begun.acquire(timeout=LIMIT) for _ in range(calls))


class Afterwards:
    """A reward that does not overlap; its only call waits until ``held`` has begun the rest, and lets it go."""

    choice, overlaps, parallel = RewardChoice(type="afterwards"), False, False

    def __init__(self, held: Held, calls: int) -> None:
        self.held, self.calls = held, calls

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        self.held.begins(self.calls)
        self.held.let_go.set()
        return [Score(-float(answer.text)) for answer in answers]


def grouped(number: int) -> list[Answer]:
    return [Answer("q", text, text) for text in (str(2 * number), str(2 * number + 1))]


GROUP_SCORES = [[Score(2.0 * number), Score(2.0 * number + 1)] for number in range(EARLY_CALLS + 3)]


def test_what_is_left_begins_at_once_when_generation_has_ended() -> None:
    """So a call that is under way never delays the last one; while answers are generated the calls are bounded."""
    held = Held(parallel=True)
    scoring = GroupScoring([held, Afterwards(held, 1)])  # type: ignore[list-item]
    with scoring:
        for number in reversed(range(EARLY_CALLS + 3)):
            scoring.add(number, grouped(number))
        held.begins(EARLY_CALLS)
        assert len(held.calls) == EARLY_CALLS
        found, negative = scoring.finish()
    assert found == GROUP_SCORES
    assert [[-float(score.value or 0) for score in group] for group in negative] == [
        [score.value for score in group] for group in GROUP_SCORES
    ]
    assert held.most == EARLY_CALLS + 1
    assert sorted(map(len, held.calls)) == [2] * EARLY_CALLS + [6], "the rest is one call"


def test_a_reward_that_is_made_to_overlap_is_never_called_twice_at_a_time() -> None:
    held = Held(parallel=False)
    with GroupScoring([held]) as scoring:  # type: ignore[list-item]
        for number in range(EARLY_CALLS + 3):
            scoring.add(number, grouped(number))
        held.begins(1)
        held.let_go.set()
        assert scoring.finish() == [GROUP_SCORES]
    assert held.most == 1 and len(held.calls) == 2


def test_after_a_failure_no_call_begins_and_those_under_way_are_waited_for() -> None:
    held = Held(parallel=True, fails="2")
    with GroupScoring([held]) as scoring:  # type: ignore[list-item]
        scoring.add(0, grouped(0))
        held.begins(1)
        scoring.add(1, grouped(1))
        held.begins(1)
        for _ in range(100 * LIMIT):
            if scoring.failed:
                break
            time.sleep(0.01)
        scoring.add(2, grouped(2))
        held.let_go.set()
        with pytest.raises(AlignError, match="no more"):
            scoring.finish()
    assert held.calls == [["0", "1"], ["2", "3"]] and not held.under_way


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
    assert apart(*made) < 1e-3


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


# --- a phase ahead ---------------------------------------------------------------------------------------------------

AHEAD = {"max_staleness": 1, "importance_sampling_correction": {"type": "truncate"}}


@pytest.fixture
def own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """``local`` has a network of its own."""
    for name, value in OWN.items():
        monkeypatch.setattr(Local, name, value)


def log(run: Run) -> list[dict[str, str]]:
    with open(Path(run.output) / "only" / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[list[PromptGroup]]:
    """The groups of each phase, as the runs of this test sample them."""
    phases: list[list[PromptGroup]] = []
    call = SampleLog.__call__

    def keep(self: SampleLog, phase: int, sampled: Any, scored: Any) -> None:
        phases.append(sampled)
        call(self, phase, sampled, scored)

    monkeypatch.setattr(SampleLog, "__call__", keep)
    return phases


@pytest.mark.usefixtures("own_weights")
def test_the_next_phase_is_generated_while_this_one_is_learned_from(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of each phase but the last, and the generation of the next phase, wait for each other."""
    meet, main = threading.Barrier(2, timeout=LIMIT), threading.main_thread()
    generate, step = Local.generate, AlignModule.training_step
    met: list[str] = []

    def generate_watched(local: Local, *given: Any, **how: Any) -> Any:
        if threading.current_thread() is not main:
            meet.wait()
            met.append("generation")
        return generate(local, *given, **how)

    def step_watched(module: AlignModule, batch: Any, *given: Any) -> Any:
        if module.global_step < 3:
            meet.wait()
            met.append("step")
        return step(module, batch, *given)

    monkeypatch.setattr(Local, "generate", generate_watched)
    monkeypatch.setattr(AlignModule, "training_step", step_watched)
    train(run("run", {"rewards": [python("low_ids")], **AHEAD}), progress=False)
    assert sorted(met) == ["generation"] * 3 + ["step"] * 3


@pytest.mark.usefixtures("own_weights")
def test_every_answer_has_the_version_of_the_weights_that_sampled_it(run: Any, kept: list[list[PromptGroup]]) -> None:
    """Shown by the log-probabilities of the checkpoint of that step, from transformers' full logits."""
    sections = {"train": {"batch_size": 16, "max_steps": 8}, "checkpoint": {"save_steps": 1, "save_total_limit": 9}}
    made = run("run", {"rewards": [python("low_ids")], "batches": 2, **AHEAD}, **sections)
    train(made, progress=False)
    versions = [{completion.version for group in groups for completion in group.completions} for groups in kept]
    assert versions == [{0}, {0}, {2}, {4}]
    files = [row["policy_version"] for phase in (3, 4) for row in samples_of(made, phase)]
    assert files == [2] * 32 + [4] * 32
    assert [float(row["rollout/staleness"]) for row in log(made)] == [0, 1, 2, 3, 2, 3, 2, 3]
    for groups, version, other in zip(kept[2:], (2, 4), (4, 6), strict=True):
        for group in groups:
            completion = group.completions[0]
            stated = torch.from_numpy(completion.logp)
            by_version, by_newer = (logp_of(made, step, group.prompt, completion.tokens) for step in (version, other))
            torch.testing.assert_close(stated, by_version, atol=1e-4, rtol=0)
            assert (stated - by_newer).abs().max() > 1e-3
    # What the weights are for: the trainer's log-probabilities at the phase's start, less the generator's.
    differences = [float(row["sampling/sampling_logp_difference/max"]) for row in log(made)]
    assert max(differences[:2]) < 1e-4 < 1e-3 < min(differences[2:])


def samples_of(run: Run, phase: int) -> list[dict[str, Any]]:
    return read_samples(Path(run.output) / "only" / "samples" / f"phase-{phase:06d}.parquet")


@torch.no_grad()
def logp_of(run: Run, step: int, prompt: Any, tokens: Any) -> torch.Tensor:
    """Log-probabilities of an answer under the weights of a checkpoint."""
    place = checkpoint.at(Path(run.output) / "only" / "checkpoints", step)
    weights = checkpoint.load(place)["state_dict"]
    model = AutoModelForCausalLM.from_pretrained(run.stages[0].model.path, dtype="float32")
    model.load_state_dict({name.removeprefix("policy.model."): value for name, value in weights.items()})
    ids = torch.from_numpy(np.concatenate([prompt, tokens]).astype(np.int64))[None]
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.usefixtures("own_weights")
def test_a_run_ahead_resumes_at_every_step_to_the_byte(run: Any, tmp_path: Path) -> None:
    """Also where an evaluation has used the generator, a phase has several steps, and groups are replaced."""
    sections = {
        "algorithm": {"type": "grpo", "num_generations": 4, "num_iterations": 2},
        "train": {"batch_size": 16, "max_steps": 8},
        "validation": {"eval_steps": 3},
        "data": {"train": str(tmp_path / "prompts.jsonl"), "validation_fraction": 0.25, "dataset_num_proc": 1},
        "checkpoint": {"save_steps": 1, "save_total_limit": 9},
    }
    rewards = [python("by_prompt", normalize=True), python("low_ids_by_server", overlap=True)]
    rollout = {"rewards": rewards, "gold": python("low_ids"), "zero_std_groups": "refill", **AHEAD}
    made = run("run", rollout, **sections)
    train(made, progress=False)
    expected, stage = left(made), Path(made.output) / "only"
    root = stage / "checkpoints"
    for step in range(1, 8):
        (stage / "done.json").unlink()
        for later in [s for s in checkpoint.steps(root) if s > step]:
            shutil.rmtree(checkpoint.at(root, later))
        train(made, resume=True, progress=False)
        assert left(made) == expected, f"resumed after step {step}"


def own_command(run: Run, *arguments: str) -> list[str]:
    file = Path(run.output).with_suffix(".yaml")
    file.write_text(run_file.dump(run))
    return ["-W", "ignore", "-m", "tests.online.own_weights", str(file), *arguments]


@pytest.mark.usefixtures("own_weights")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ahead_that_is_killed_goes_on_to_the_byte(run: Any, number: signal.Signals) -> None:
    rollout = {"rewards": [python("low_ids")], "sampling": {"max_completion_length": 48}, "batches": 2, **AHEAD}
    sections = {"train": {"batch_size": 16, "max_steps": 12}, "checkpoint": {"save_steps": 1}}
    quiet, killed = (run(name, rollout, **sections) for name in ("quiet", "killed"))
    train(quiet, progress=False)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, *own_command(killed)], env=environment, stderr=subprocess.DEVNULL)
    root, deadline = Path(killed.output) / "only" / "checkpoints", time.monotonic() + LIMIT
    while len(checkpoint.steps(root)) < 2:
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.01)
    started.send_signal(number)
    assert started.wait(LIMIT) != 0
    assert (checkpoint.last_step(root) or 0) < 12
    train(killed, resume=True, progress=False)
    assert left(killed) == left(quiet)


@pytest.mark.usefixtures("own_weights")
def test_two_ranks_run_ahead_as_one_does(run: Any) -> None:
    rollout = {"rewards": [python("low_ids_by_server"), python("odd_abstains")], **AHEAD}
    sections = {"train": {"batch_size": 16, "max_steps": 4}, "checkpoint": {"save_steps": 2}}
    one, two = (run(f"ranks-{n}", rollout, **sections, devices={"count": n}) for n in (1, 2))
    train(one, progress=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = own_command(two)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command[2:]], env=environment, capture_output=True, text=True, timeout=2 * LIMIT)
    assert done.returncode == 0, done.stderr
    for phase in range(1, 5):
        rows = [[(r["completion"], r["reward"], r["policy_version"]) for r in samples_of(m, phase)] for m in (one, two)]
        assert rows[0] == rows[1]
    assert apart(one, two) < 1e-3


@pytest.mark.usefixtures("own_weights")
@pytest.mark.parametrize("reward", ["breaks", "server_breaks"])
def test_a_reward_that_fails_on_the_phase_ahead_costs_no_step(run: Any, reward: str) -> None:
    """It fails on answers of the third step's weights, which the fifth phase would learn from: the fourth is saved."""
    sections = {"train": {"batch_size": 16, "max_steps": 6}, "checkpoint": {"save_steps": 100}}
    made = run("run", {"rewards": [python(reward)], **AHEAD}, **sections)
    with pytest.raises(AlignError) as caught:
        train(made, progress=False)
    assert all(word in str(caught.value) for word in ("the judge went home", "step 4 is saved", "--resume"))
    root = Path(made.output) / "only" / "checkpoints"
    assert checkpoint.last_step(root) == 4
    state = next(
        value["steps"] for value in checkpoint.load(checkpoint.at(root, 4))["callbacks"].values() if "steps" in value
    )
    assert state["ahead"] is None and state["place"] == 16  # four phases of four prompts; the fifth is sampled again


@pytest.mark.usefixtures("own_weights")
def test_what_is_in_flight_ends_with_the_run(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the first step: the generation in the other thread is cancelled, and has ended."""

    def breaks(*_: Any) -> Any:
        raise AlignError("no step today")

    monkeypatch.setattr(AlignModule, "training_step", breaks)
    rollout = {"rewards": [python("low_ids_by_server")], "sampling": {"max_completion_length": 64}, **AHEAD}
    with pytest.raises(AlignError, match="no step today"):
        train(run("run", rollout), progress=False)
    assert not [thread for thread in threading.enumerate() if thread.name in ("align-ahead", "align-python")]


@pytest.mark.parametrize(
    ("rollout", "algorithm", "words"),
    [
        ({}, "grpo", ["generator local", "trainer's own weights", "mode: server"]),
        ({"generator": {"type": "vllm", "mode": "server"}, "importance_sampling_correction": {}}, "grpo", ["corrects"]),
        ({}, "best_of_n", ["best_of_n learns nothing"]),
    ],
)
def test_what_cannot_run_ahead_is_refused_with_the_reason(run: Any, rollout: Any, algorithm: str, words: Any) -> None:
    made = run("run", {"rewards": [python("low_ids")], **AHEAD, **rollout}, algorithm={"type": algorithm})
    with pytest.raises(AlignError) as caught:
        train(made, progress=False)
    assert all(word in str(caught.value) for word in ["only: rollout.max_staleness", *words]), str(caught.value)
