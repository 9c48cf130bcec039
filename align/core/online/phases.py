"""Online phases: sample, score, compute advantages, then take optimizer steps as offline; a phase is one epoch.

What cannot be computed again from the settings is the phase's completions (the weights that sampled them are gone),
what algorithm and rewards carry from phase to phase, and how many prompts were drawn: that is the state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from align.core.algorithm import contract, importance_weights
from align.core.algorithm.contract import Advantages, Experience, Group, Online, example_of
from align.core.data import step_plan
from align.core.data.batch import MicroBatch
from align.core.data.examples import Example, Examples, InMemory, TokenSequence
from align.core.engine.checkpoint import all_gather_objects, all_gather_or_raise
from align.core.engine.steps import MicroBatcher, StepBatch, StepLoader
from align.core.generation.decode import seed_of
from align.core.generation.generator_base import (
    Floats,
    Generator,
    Interrupt,
    ModelHandle,
    Request,
    Sample,
    Tokens,
    TurnReader,
)
from align.core.models.policy import Policy, Scores, without_gradient_or_dropout
from align.core.models.precompute import detached_logp, token_values
from align.core.models.reference import ReferenceModel
from align.core.online.monitor import answer_metrics, group_metrics, level, score_metrics, zero_variance
from align.core.online.sync_check import check_sync
from align.core.rewards.reward_base import Answer, Score, set_global_step
from align.core.rewards.scorer import GroupScoring, RewardScores, Scored, Scorer
from align.core.util.profile import profiled
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Content, Record
from align.schemas.run import Rollout, Sampling, Stage

# One phase's completions: prompts are split over the ranks, answered, scored, gathered again, and measured.
#
# Every completion has its own random numbers (run seed, position of its prompt in the run, number within its group),
# and the gathered ones are in the order of the prompts. So all ranks hold the same completions, whatever their number.

PROBED = 4
"""Sequences that the sync gate compares."""
SAME_LOGP = 1e-5
"""Largest difference of two log-probabilities that is taken for rounding in float32 (1e-6 in a model of 0.9M)."""


class PhaseFailed(AlignError):
    """Raised on every rank for an error of sampling or scoring on one of them, so that all can save and stop."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts as tokens and as rows."""

    examples: Examples
    rows: Mapping[str, Record]
    """By source."""

    def __len__(self) -> int:
        return len(self.examples)

    def tokens(self, i: int) -> Tokens:
        """Return the tokens of a prompt: [P]."""
        return self.examples[i].sequences[0].tokens

    def row(self, i: int) -> Record:
        """Return the row that a prompt was made of."""
        return self.rows[self.examples[i].source]


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One completion, sampled and scored; plain values, since it travels between ranks."""

    tokens: Tokens
    logp: Floats
    finish: Literal["stop", "length"]
    text: str
    scores: RewardScores
    gold: Score | None
    version: int
    """Number of optimizer steps that made the weights which sampled it."""


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt with its completions. position: the number of prompts sampled before it in this run."""

    position: int
    source: str
    prompt: Tokens
    content: Content
    completions: list[ScoredSample]


@dataclass(frozen=True, slots=True)
class Round:
    """Prompts to complete together.

    indices: of the prompts. positions: the number of prompts sampled before each of them in this run, which their
    random numbers follow from. num_generations: completions of each.
    """

    prompts: Prompts
    indices: Sequence[int]
    positions: Sequence[int]
    num_generations: int
    sampling: Sampling


class Collector:
    """Samples completions, scores them and measures them. Every rank calls every method, with the same arguments."""

    def __init__(
        self,
        rollout: Rollout,
        generator: Generator,
        handle: ModelHandle,
        scorer: Scorer,
        gold: Scorer | None,
        critic: Policy | None,
        reference: ReferenceModel | None,
        batcher: MicroBatcher,
        seed: int,
        forward: Callable[[], AbstractContextManager[object]],
        stop: Callable[[], bool],
    ) -> None:
        """forward: makes the context of forward passes. stop: true when sampling is to be interrupted."""
        assert handle.policy is not None
        self.rollout, self.generator, self.handle, self.scorer, self.gold = rollout, generator, handle, scorer, gold
        self.policy, self.critic, self.reference = handle.policy, critic, reference
        self.batcher, self.seed, self.forward, self.stop = batcher, seed, forward, stop
        self.turns = TurnReader(handle.tokenizer)
        self.synced: int | None = None
        """The optimizer step whose weights were sent to the generator."""
        self.version = 0
        """Number of optimizer steps that made the weights which the generator samples from."""
        self._ahead: _Ahead | None = None
        self.gap: float | None = None
        """Largest difference of log-probabilities at the last sync."""

    @profiled("weight sync")
    def sync(self, version: int, prompts: Prompts) -> None:
        """Give the generator the policy's weights, and check by log-probabilities that it has them."""
        assert self._ahead is None, "weights would change under the completions in flight"
        self.version = version
        if self.generator.shares_weights or self.synced == version:
            return
        fault = self._send(version, prompts)
        if self.generator.has_fallback and any(all_gather_objects(fault is not None)):
            with contract.calling(self.generator, "fall_back"):
                self.generator.fall_back("" if fault is None else str(fault))
            fault = self._send(version, prompts)
        if fault is not None:
            raise fault
        self.synced = version

    def _send(self, version: int, prompts: Prompts) -> AlignError | None:
        """Send the weights once; return what the gate has found."""
        with contract.calling(self.generator, "sync"):
            self.generator.sync(self.policy, version)
        tokens = (prompts.tokens(i) for i in range(len(prompts)))
        probed = islice((prompt for prompt in tokens if len(prompt) > 1), PROBED)
        probe = [(prompt[:1], prompt[1:]) for prompt in probed]
        try:
            with self.forward():
                self.gap = check_sync(
                    self.generator, self.policy, probe, self.batcher.pad_id, tolerance=self.rollout.sync_tolerance
                )
        except AlignError as error:
            return error
        return None

    def sample(self, wanted: Round, interruptible: bool = True) -> list[PromptGroup]:
        """Sample and score completions. Collective.

        Raises on all ranks what one had to raise: ``Interrupt``, or ``PhaseFailed`` for an AlignError.
        """
        generation = self._generation(wanted)
        # An engine has its own precision.
        forward = self.forward() if self.generator.shares_weights else nullcontext()

        def own() -> list[list[ScoredSample]]:
            with generation:
                with profiled("generation"), forward, torch.random.fork_rng(devices=[]):
                    generation.run(self.stop if interruptible else _never)
                return generation.scored()

        return self._gather(own, wanted)

    def launch(self, wanted: Round) -> None:
        """Begin to sample as ``sample`` does, in a thread, with the weights that the generator has; see ``land``.

        Only for generators that ``generate_in_background``. Until ``land`` no weights may be sent.
        """
        assert self._ahead is None and self.generator.generates_in_background
        self._ahead = _Ahead(self._generation(wanted), wanted)

    @property
    def in_flight(self) -> bool:
        """True between ``launch`` and ``land``."""
        return self._ahead is not None

    @profiled("generation")
    def land(self) -> list[PromptGroup]:
        """Wait for what was launched, and return it scored, as ``sample`` does. Collective.

        No signal interrupts it: the weights that sampled it may be gone, so that it could not be sampled again.
        """
        ahead, self._ahead = self._ahead, None
        assert ahead is not None
        return self._gather(ahead.result, ahead.wanted)

    def close(self) -> None:
        """Cancel what is in flight; before the generator is closed."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()

    def _generation(self, wanted: Round) -> Generation:
        """Return this rank's share of a round, not begun."""
        rank, world_size = self.batcher.rank, self.batcher.world_size
        prompts, completions = wanted.prompts, range(wanted.num_generations)
        own = list(zip(wanted.indices, wanted.positions, strict=True))[rank::world_size]
        requests = [
            Request(prompts.tokens(index), tuple(seed_of(self.seed, position, n) for n in completions))
            for index, position in own
        ]
        rows = [(prompts.row(index), position) for index, position in own]
        return Generation(self, requests, rows, wanted.sampling, self.version)

    def _gather(self, share: Callable[[], list[list[ScoredSample]]], wanted: Round) -> list[PromptGroup]:
        """Return the groups of all ranks; ``share`` gives this rank's. Collective; raises as ``sample``."""
        world_size = self.batcher.world_size
        own: list[list[ScoredSample]] | None = None
        problems: tuple[Problem, ...] = ()
        try:
            own = share()
        except Interrupt:
            pass  # raised again once every rank knows of it, or the others would wait for this one
        except AlignError as error:
            problems = error.problems
        by_rank: list[Any] = all_gather_or_raise(own, problems, PhaseFailed)
        if any(completions is None for completions in by_rank):
            raise Interrupt
        groups, prompts = [], wanted.prompts
        for i, (index, position) in enumerate(zip(wanted.indices, wanted.positions, strict=True)):
            completions = by_rank[i % world_size][i // world_size]
            row = prompts.row(index)
            groups.append(PromptGroup(position, row.source, prompts.tokens(index), row.prompt or "", completions))
        return groups

    @profiled("reference")
    def measure(self, groups: Sequence[Group], logp: bool) -> None:
        """Set ``ref_logp`` and ``value`` of every completion, where there is such a network, and ``logp`` if wanted."""
        scores: dict[str, Callable[[MicroBatch], torch.Tensor]] = {}
        if logp:
            scores["logp"] = partial(detached_logp, self.policy)
        if self.reference is not None:
            scores["ref_logp"] = self.reference.logp
        if self.critic is not None:
            scores["value"] = partial(_values, self.critic)
        flat = [experience for group in groups for experience in group]
        if not scores or not flat:
            return
        for name, values in zip(scores, self._token_values(flat, list(scores.values())), strict=True):
            for experience, mine in zip(flat, values, strict=True):
                setattr(experience, name, mine)

    def take_sampled_logp(self, groups: Sequence[Group]) -> bool:
        """Take the generator's log-probabilities for the policy's (``logp``), if they are the same to rounding.

        Not in 16 bits, where rounding is no small matter, nor under truncated sampling; otherwise it is tried on the
        longest completion, since a model may treat positions otherwise with a key-value cache. Collective.
        """
        flat = [experience for group in groups for experience in group]
        exact = self.batcher.train.precision == "32-true" and all(
            parameter.dtype in (torch.float32, torch.float64) for parameter in self.policy.parameters()
        )
        if not (flat and exact and self.generator.shares_weights and self.rollout.sampling.neutral):
            return False
        longest = max(flat, key=lambda experience: len(experience.prompt) + len(experience.tokens))
        ((measured,),) = self._token_values([longest], [partial(detached_logp, self.policy)])
        if not np.abs(measured - longest.sampled_logp).max() <= SAME_LOGP:  # "not <=" also catches NaN
            return False
        for experience in flat:
            experience.logp = experience.sampled_logp
        return True

    def _token_values(
        self, flat: Sequence[Experience], scores: Sequence[Callable[[MicroBatch], torch.Tensor]]
    ) -> list[list[Floats]]:
        """Return, for each function of ``scores``, its values at the tokens of every completion: [T] of each."""
        with self.forward():
            return token_values(
                InMemory([example_of(experience, {}) for experience in flat]),
                scores,
                device=self.policy.device,
                layout=self.batcher.layout,
                pad_id=self.batcher.pad_id,
                micro_tokens=self.batcher.micro_tokens,
                micro_size=self.batcher.train.micro_batch_size,
            )


class Generation:
    """The completions of one rank's share of a round of prompts: generated, and scored as their groups finish.

    ``with generation:`` call ``run``, in any thread, then ``scored`` in the main one: some rewards need that.
    """

    def __init__(
        self,
        collector: Collector,
        requests: Sequence[Request],
        rows: Sequence[tuple[Record, int]],
        sampling: Sampling,
        version: int,
    ) -> None:
        """rows: of each request, with its position in the run. version: optimizer steps that made the weights."""
        self.generator, self.turns = collector.generator, collector.turns
        self.sampling, self.version = sampling, version
        self.requests, self.rows = requests, rows
        self._names = list(collector.scorer.rewards)
        self._gold = [] if collector.gold is None else list(collector.gold.rewards.values())
        self._scoring = GroupScoring([*self._gold, *collector.scorer.rewards.values()])
        self._sampled: list[list[Sample]] = []
        self._texts: dict[int, list[str]] = {}

    def __enter__(self) -> Generation:
        self._scoring.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._scoring.__exit__(*error)

    def run(self, stop: Callable[[], bool]) -> None:
        """Generate all completions; begin to score. Raises Interrupt or AlignError as ``contract.generate``.

        A reward that fails ends it early; ``scored`` then raises its error.
        """

        def finished(number: int, samples: Sequence[Sample]) -> None:
            answers = self._answers(*self.rows[number], samples)
            self._texts[number] = [answer.text for answer in answers]
            self._scoring.add(number, answers)

        def ends() -> bool:
            return self._scoring.failed or stop()

        try:
            self._sampled = contract.generate(self.generator, self.requests, self.sampling, finished, stop=ends)
        except Interrupt:
            if not self._scoring.failed:
                raise

    def scored(self) -> list[list[ScoredSample]]:
        """Return the completions of each prompt with their scores. Raises AlignError where a reward failed."""
        columns = self._scoring.finish()
        scored: list[list[ScoredSample]] = []
        for number, samples in enumerate(self._sampled):
            scored.append([])
            for n, sample in enumerate(samples):
                scores = [column[number][n] for column in columns]
                gold = scores.pop(0) if self._gold else None
                by_name = dict(zip(self._names, scores, strict=True))
                text = self._texts[number][n]
                scored[-1].append(
                    ScoredSample(sample.tokens, sample.logp, sample.finish, text, by_name, gold, self.version)
                )
        return scored

    def _answers(self, row: Record, position: int, samples: Sequence[Sample]) -> list[Answer]:
        """Return a group's completions as rewards see them."""
        opening = self.turns.opening(row)
        answers = []
        for sample in samples:
            tokens = tuple(sample.tokens.tolist())
            text = self.turns.text(tokens, opening)
            completion: Content = [{"role": "assistant", "content": text}] if row.conversational else text
            answers.append(Answer(row.prompt or "", completion, text, tokens, sample.finish, row.columns, position))
        return answers


class _Ahead:
    """A round that is generated in a thread while the policy is trained."""

    def __init__(self, generation: Generation, wanted: Round) -> None:
        self.generation, self.wanted = generation, wanted
        self._cancelled = False
        self._error: BaseException | None = None
        generation.__enter__()
        # A daemon: a server that does not answer must not keep an interrupted process alive.
        self._thread = threading.Thread(target=self._run, name="align-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.generation.run(lambda: self._cancelled)
        except BaseException as error:  # raised again in the main thread
            self._error = error

    def result(self) -> list[list[ScoredSample]]:
        """Wait until it is generated and scored. Raises AlignError where it failed."""
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            return self.generation.scored()
        finally:
            self.generation.__exit__(None, None, None)

    def cancel(self) -> None:
        """Stop it, and wait until it has stopped."""
        self._cancelled = True
        self._thread.join()
        self.generation.__exit__(None, None, None)


def _never() -> bool:
    return False


def _values(critic: Policy, micro: MicroBatch) -> torch.Tensor:
    with without_gradient_or_dropout(critic):
        scores: Scores = critic(micro)
    assert scores.value_T is not None
    return scores.value_T


# Examples as plain values and tensors: what a checkpoint may hold, so that loading one runs no code.


def plain(example: Example) -> dict[str, Any]:
    """An example as plain values and tensors, which a checkpoint may hold."""
    sequences = [
        {
            "role": s.role,
            "tokens": torch.from_numpy(np.array(s.tokens)),
            "scored": torch.from_numpy(np.array(s.scored)),
            "ref_logp": None if s.ref_logp is None else torch.from_numpy(np.array(s.ref_logp)),
            "token_data": {name: torch.from_numpy(np.array(values)) for name, values in s.token_data.items()},
        }
        for s in example.sequences
    ]
    return {"source": example.source, "columns": dict(example.columns), "sequences": sequences}


def from_plain(kept: Mapping[str, Any]) -> Example:
    """Return the example that ``plain`` took apart."""
    sequences = tuple(
        TokenSequence(
            s["role"],
            s["tokens"].numpy(),
            s["scored"].numpy(),
            None if s["ref_logp"] is None else s["ref_logp"].numpy(),
            {name: values.numpy() for name, values in s["token_data"].items()},
        )
        for s in kept["sequences"]
    )
    return Example(kept["source"], sequences, kept["columns"])


def plain_group(group: PromptGroup) -> dict[str, Any]:
    """A prompt with its scored completions as plain values and tensors."""
    completions = [
        {
            "tokens": torch.from_numpy(np.array(completion.tokens)),
            "logp": torch.from_numpy(np.array(completion.logp)),
            "finish": completion.finish,
            "text": completion.text,
            "scores": {name: _plain_score(score) for name, score in completion.scores.items()},
            "gold": None if completion.gold is None else _plain_score(completion.gold),
            "version": completion.version,
        }
        for completion in group.completions
    ]
    content = group.content if isinstance(group.content, str) else [dict(message) for message in group.content]
    prompt = torch.from_numpy(np.array(group.prompt))
    return {
        "position": group.position,
        "source": group.source,
        "prompt": prompt,
        "content": content,
        "completions": completions,
    }


def group_from_plain(kept: Mapping[str, Any]) -> PromptGroup:
    """Return the group that ``plain_group`` took apart."""
    completions = [
        ScoredSample(
            each["tokens"].numpy(),
            each["logp"].numpy(),
            each["finish"],
            each["text"],
            {name: Score(**score) for name, score in each["scores"].items()},
            None if each["gold"] is None else Score(**each["gold"]),
            each["version"],
        )
        for each in kept["completions"]
    ]
    return PromptGroup(kept["position"], kept["source"], kept["prompt"].numpy(), kept["content"], completions)


def _plain_score(score: Score) -> dict[str, Any]:
    return {"value": score.value, "outcome": score.outcome, "parts": dict(score.parts), "why": score.why}


PhaseObserver = Callable[[int, Sequence[PromptGroup], Sequence[Scored]], None]
"""A function called with the number of a phase, its prompts with their completions, and the scores in that order."""

REFILL = 3
"""Tokens that a phase with replacements may take in all, as a multiple of the first round's."""


class RolloutSteps:
    """Phases of ``batches`` * ``num_iterations`` optimizer steps over the same answers; at most ``total_steps`` in all.

    Where the stage ends after a number of epochs its last phase has the prompts that are left, and as many steps as
    their answers fill.

    observers: called with every phase's completions and scores, before the first step on them (samples, notices).
    """

    def __init__(
        self,
        prompts: Prompts,
        collector: Collector,
        algorithm: Online,
        batcher: MicroBatcher,
        stage: Stage,
        observers: Sequence[PhaseObserver] = (),
    ) -> None:
        assert stage.rollout is not None
        self.prompts, self.collector, self.algorithm, self.batcher = prompts, collector, algorithm, batcher
        self.observers = observers
        self.rollout, self.seed, self.stage = stage.rollout, stage.seed, stage.name
        self.groups_per_phase = groups_per_phase(stage, algorithm)
        self.steps_per_phase = self.rollout.batches * algorithm.num_iterations
        self.steps_per_rollout: int | None = self.steps_per_phase
        self.evaluate_every: int | None = -(-len(prompts) // self.groups_per_phase) * self.steps_per_phase
        self._wanted, self.total_steps = extent(stage, algorithm, len(prompts))
        self.metrics: Mapping[str, float] = {}
        self.unscored = ""
        """Why the phase's first answer without a score has none."""
        self._prompts_drawn = 0
        self._phase = -1
        self._epoch = -1
        self._examples: list[list[Example]] | None = None  # of each group, while the phase has steps left
        self._version = 0  # of the oldest weights that sampled the phase's completions
        self._ahead: list[PromptGroup] | None = None  # of the next phase, where they are finished already
        self._ahead_failed: PhaseFailed | None = None
        self._launched = 0  # prompts in flight

    # --- steps -----------------------------------------------------------------------------------------------------

    def loader(self, phase: int, start: int) -> StepLoader:
        """Return the steps of one phase, whose completions are sampled when the first of them is fetched."""
        before = phase * self.steps_per_phase

        def build(index: int) -> StepBatch:
            if self._phase != phase or self._examples is None:
                carried = self.state_dict()
                try:
                    self._collect(phase)
                except (Interrupt, PhaseFailed):  # the phase will be collected again, from what it began with
                    self.load_state_dict(carried)
                    raise
            assert self._examples is not None
            self.metrics = {**self.metrics, "rollout/staleness": float(before + index - self._version)}
            batches = self._batches(phase)
            turn, batch = divmod(index, batches)
            order = self._order(len(self._examples), phase * self.algorithm.num_iterations + turn)
            chosen = np.array_split(order, batches)[batch]
            step = self.batcher.step(index, [example for group in chosen for example in self._examples[group]])
            if index == batches * self.algorithm.num_iterations - 1:
                self._examples = None  # a checkpoint after the phase need not hold it
            return step

        return StepLoader(build, min(self.steps_per_phase, self.total_steps - before), start)

    def _order(self, groups: int, epoch: int) -> NDArray[Any]:
        batches = (
            step_plan.epoch_order(np.zeros(groups, np.int32), (1.0,), self.seed, epoch, max(1, groups))
            if groups
            else []
        )
        return batches[0] if batches else np.zeros(0, np.int64)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """Return (phase, step within it)."""
        return divmod(steps_done, self.steps_per_phase)

    def epochs(self, steps_done: int) -> float:
        """Return the passes over the prompts; replacements of groups without variance are not counted."""
        phase, within = self.locate(steps_done)
        part = within / (self._batches(phase) * self.algorithm.num_iterations) if within else 0.0
        drawn = phase * self.groups_per_phase + part * self._groups(phase)
        return (drawn if self._wanted is None else min(drawn, self._wanted)) / len(self.prompts)

    def _groups(self, phase: int) -> int:
        """Return the number of a phase's prompts: in the last one those that are left."""
        left = self.groups_per_phase if self._wanted is None else self._wanted - phase * self.groups_per_phase
        return max(1, min(self.groups_per_phase, left))

    def _batches(self, phase: int) -> int:
        """Return how many steps one pass over a phase's answers takes: its share of a full phase's, rounded up."""
        return -(-self._groups(phase) * self.rollout.batches // self.groups_per_phase)

    # --- one phase -------------------------------------------------------------------------------------------------

    def _collect(self, phase: int) -> None:
        """Make the examples of a phase: sample and score completions, measure them, and compute their advantages."""
        version = phase * self.steps_per_phase
        ahead = self._landed()
        set_global_step(version)
        self.collector.sync(version, self.prompts)
        sampled, scored, groups = self._sample(self._groups(phase), ahead)
        self._version = min(completion.version for completion in completions_of(sampled))
        assert version - self._version <= self.rollout.max_staleness * self.steps_per_phase
        self._launch(phase + 1)
        learnable = [group for group in groups if not zero_variance(group)]
        for group in groups:
            if zero_variance(group):
                level(group)
        metrics = self._completion_metrics(sampled, scored) | group_metrics(groups)
        metrics["rollout/prompts"] = float(len(groups))
        metrics["rollout/zero_std_groups"] = float(len(groups) - len(learnable))
        learned = groups if self.rollout.zero_std_groups == "keep" else learnable
        weights, weight_metrics = self._measure(learned)
        advantages = self._advantages(learned, weights)
        metrics |= weight_metrics
        metrics["rollout/masked"] = float(np.mean(~advantages.keep)) if len(advantages.keep) else 0.0
        metrics |= {name: float(value) for name, value in advantages.metrics.items()}
        if self.collector.gap is not None:
            metrics["sampling/sync_gap"] = self.collector.gap
        self._examples = contract.examples(self.algorithm, learned, advantages)
        self._phase, self.metrics, self.unscored = phase, metrics, why_unscored(scored)
        for observe in self.observers:
            observe(phase, sampled, scored)

    # One phase ahead (``max_staleness: 1``): once the weights of phase k are sent, phase k + 1 is sampled from them in
    # a thread while phase k is learned from. Its completions cannot be sampled again after that, so whoever needs the
    # generator (an evaluation) or a state to resume from (a checkpoint) waits for them, and the state holds them.

    def _launch(self, phase: int) -> None:
        """Begin to sample a phase from the weights that were sent last, where the stage has it and samples ahead."""
        if not self.rollout.max_staleness or phase * self.steps_per_phase >= self.total_steps:
            return
        count = self._groups(phase)
        self.collector.launch(self._next_round(count))
        self._prompts_drawn += count
        self._launched = count

    def _land(self) -> None:
        """Wait for the next phase's completions, if they are in flight. Collective.

        A failure is kept for the phase that needs them, so that the steps until then can be saved.
        """
        if not self.collector.in_flight:
            return
        try:
            self._ahead = self.collector.land()
        except PhaseFailed as error:
            self._ahead_failed = error
            self._prompts_drawn -= self._launched  # a resumed run samples them again, from the weights it then has

    def _landed(self) -> list[PromptGroup] | None:
        """Return the completions that were sampled ahead for the phase that begins. Raises PhaseFailed. Collective."""
        self._land()
        ahead, self._ahead = self._ahead, None
        failed, self._ahead_failed = self._ahead_failed, None
        if failed is not None:
            raise failed
        return ahead

    def _sample(
        self, full: int, ahead: list[PromptGroup] | None
    ) -> tuple[list[PromptGroup], list[Scored], list[Group]]:
        """Return the ``full`` groups of a phase; ``refill`` replaces those of equal rewards within the token budget.

        ahead: the first round, where it was sampled before.
        """
        sampled, scored, groups = list[PromptGroup](), list[Scored](), list[Group]()
        tokens, budget, missing = 0, 0, full
        while missing > 0:
            new, ahead = ahead or self._next_groups(missing), None
            new_scored = self.collector.scorer.combine([completion.scores for completion in completions_of(new)])
            sampled, scored = sampled + new, scored + new_scored
            groups += experiences(new, new_scored)
            if self.rollout.zero_std_groups != "refill":
                break
            tokens += sum(len(completion.tokens) for completion in completions_of(new))
            budget = budget or self.rollout.refill_tokens or REFILL * tokens
            missing = full - sum(not zero_variance(group) for group in groups)
            if tokens >= budget:
                break
        return sampled, scored, groups

    def _next_groups(self, count: int) -> list[PromptGroup]:
        """Sample and score the next ``count`` prompts of the run. Collective."""
        new = self.collector.sample(self._next_round(count))
        self._prompts_drawn += count
        return new

    def _next_round(self, count: int) -> Round:
        """Return the next ``count`` prompts of the run, with the stage's sampling."""
        positions = range(self._prompts_drawn, self._prompts_drawn + count)
        indices = [self._prompt(position) for position in positions]
        return Round(self.prompts, indices, positions, self.algorithm.num_generations, self.rollout.sampling)

    def _completion_metrics(self, sampled: Sequence[PromptGroup], scored: Sequence[Scored]) -> dict[str, float]:
        """Return the metrics of the completions alone: lengths and scores."""
        completions = completions_of(sampled)
        lengths = length_metrics(completions)
        gold = [completion.gold for completion in completions]
        return lengths | score_metrics(scored, gold, self.algorithm.num_generations)

    def _measure(self, learned: list[Group]) -> tuple[list[NDArray[np.float32]] | None, dict[str, float]]:
        """Measure the log-probabilities that the steps need; return importance weights, where there are, and metrics.

        The policy's own are needed where it moves before the last step on these completions (``old_logp``), for
        importance weights, and where the algorithm asks for them. Raises AlignError for one that is not finite: a model
        that gives NaN is no fault of the algorithm, which would otherwise be the first to meet it.
        """
        correction = self.rollout.importance_sampling_correction
        weighted = correction.type != "none" or not self.collector.generator.shares_weights
        # A KL in the reward is measured by one network in passes of one shape: where policy and reference are equal it
        # is exactly 0. Against the generator's numbers it would be rounding, and AdamW makes a whole step of that.
        exactly = weighted or self.algorithm.measures_logp
        ratios_only = self._several_steps and not exactly and self.collector.take_sampled_logp(learned)
        self.collector.measure(learned, exactly or (self._several_steps and not ratios_only))
        flat = [experience for group in learned for experience in group]
        if not flat:
            return None, {}
        weights, metrics = importance_weights.weights(flat, correction) if weighted else (None, {})
        measured = [name for name in ("logp", "ref_logp", "value") if getattr(flat[0], name) is not None]
        _finite(flat, {name: [getattr(experience, name) for experience in flat] for name in measured})
        return weights, metrics

    def _advantages(self, learned: list[Group], weights: list[NDArray[np.float32]] | None) -> Advantages:
        """Return the algorithm's advantages, with the old log-probabilities and importance weights of each token."""
        advantages = contract.compute_advantages(self.algorithm, learned)
        flat = [experience for group in learned for experience in group]
        token_data = dict(advantages.token_data)
        if self._several_steps or weights is not None:
            token_data["old_logp"] = [_measured(experience) for experience in flat]
        if weights is not None:
            token_data["weight"] = weights
        _finite(flat, token_data)
        return Advantages(token_data, advantages.keep, advantages.metrics)

    @property
    def _several_steps(self) -> bool:
        return self.steps_per_phase > 1

    def _prompt(self, position: int) -> int:
        """Return the index of the prompt at a position of the run: every epoch has its own order."""
        epoch, at = divmod(position, len(self.prompts))
        if epoch != self._epoch:
            examples = self.prompts.examples
            drawn = step_plan.epoch_order(examples.sources, examples.weights, self.seed, epoch, len(examples))
            self._epoch, self._drawn = epoch, np.concatenate(drawn)
        return int(self._drawn[at % len(self._drawn)])

    # --- held-out prompts ------------------------------------------------------------------------------------------

    def evaluate(self, held_out: Prompts, version: int) -> dict[str, float]:
        """Return the metrics of the greedy completions to held-out prompts."""
        self._land()
        self.collector.sync(version, held_out)
        greedy = Sampling(**self.rollout.sampling.model_dump() | {"temperature": 0.0})
        indices = range(len(held_out))
        # Not interruptible: it is always finished, so that the log stays exact.
        sampled = self.collector.sample(Round(held_out, indices, indices, 1, greedy), interruptible=False)
        completions = completions_of(sampled)
        scored = self.collector.scorer.combine([completion.scores for completion in completions], update=False)
        return score_metrics(scored, [completion.gold for completion in completions]) | length_metrics(completions)

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the phase's answers while it has steps left, and what is carried from phase to phase. Collective.

        Waits for the next phase's answers where they are in flight.
        """
        self._land()
        with contract.calling(self.algorithm, "state_dict"):
            carried = self.algorithm.state_dict()
        return {
            "place": self._prompts_drawn,
            "phase": self._phase,
            "metrics": dict(self.metrics),
            "version": self._version,
            "ahead": None if self._ahead is None else [plain_group(group) for group in self._ahead],
            "examples": None if self._examples is None else [[plain(e) for e in group] for group in self._examples],
            "algorithm": carried,
            "scorer": self.collector.scorer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, before the first ``loader``."""
        self._prompts_drawn, self._phase, self.metrics = state["place"], state["phase"], state["metrics"]
        self._version, ahead = state["version"], state["ahead"]
        self._ahead = None if ahead is None else [group_from_plain(kept) for kept in ahead]
        set_global_step(max(0, self._phase) * self.steps_per_phase)
        groups = state["examples"]
        self._examples = None if groups is None else [[from_plain(kept) for kept in group] for group in groups]
        with contract.calling(self.algorithm, "load_state_dict"):
            self.algorithm.load_state_dict(state["algorithm"])
        self.collector.scorer.load_state_dict(state["scorer"])


def groups_per_phase(stage: Stage, algorithm: Online) -> int:
    """Return the number of prompts in a phase. Raises AlignError where groups do not fill optimizer steps."""
    assert stage.rollout is not None
    each = algorithm.num_generations
    if stage.train.batch_size % each:
        raise AlignError(
            f"is {stage.train.batch_size} answers, which {algorithm.name}'s groups of {each} do not fill",
            f"take a multiple of {each}",
            where=f"{stage.name}: train.batch_size",
        )
    if stage.rollout.zero_std_groups != "keep" and algorithm.num_generations == 1:
        raise AlignError(
            f"is {stage.rollout.zero_std_groups}, but {algorithm.name} asks each prompt once",
            "use keep, or larger groups",
            where=f"{stage.name}: rollout.zero_std_groups",
        )
    return stage.train.batch_size * stage.rollout.batches // algorithm.num_generations


def extent(stage: Stage, algorithm: Online, prompts: int) -> tuple[int | None, int]:
    """Return how many prompts a stage has in all, None where ``max_steps`` ends it, and its number of optimizer steps.

    An epoch has each prompt exactly once (``zero_std_groups: refill`` has further ones), so the last phase may be
    short.
    """
    assert stage.rollout is not None
    if stage.train.max_steps:
        return None, stage.train.max_steps
    full = groups_per_phase(stage, algorithm)
    wanted = max(1, round(stage.train.num_train_epochs * prompts))
    phases, left = divmod(wanted, full)
    last = -(-left * stage.rollout.batches // full)  # rounded up: a short last batch is still a step
    batches = phases * stage.rollout.batches + last
    return wanted, batches * algorithm.num_iterations


def completions_of(sampled: Sequence[PromptGroup]) -> list[ScoredSample]:
    """Return the completions of all groups, one after the other."""
    return [completion for group in sampled for completion in group.completions]


def length_metrics(completions: Sequence[ScoredSample]) -> dict[str, float]:
    """Return ``answer_metrics`` of sampled completions."""
    return answer_metrics(
        [len(completion.tokens) for completion in completions],
        [completion.finish == "length" for completion in completions],
    )


def experiences(sampled: Sequence[PromptGroup], scored: Sequence[Scored]) -> list[Group]:
    """Return sampled completions as algorithms see them; ``scored`` has all groups' scores one after the other."""
    rewards = iter(scored)
    groups: list[Group] = []
    for prompt in sampled:
        group = []
        for completion in prompt.completions:
            score = next(rewards)
            experience = Experience(prompt.source, prompt.prompt, completion.tokens, completion.finish, completion.logp)
            experience.reward, experience.parts, experience.size = score.learned, score.parts, score.size
            group.append(experience)
        groups.append(group)
    return groups


def why_unscored(scored: Sequence[Scored]) -> str:
    """Return the first explanation that a reward gave for an answer without a score; "" where none did."""
    for each in scored:
        if each.reward is None:
            for name, score in each.scores.items():
                if score.why:
                    return f"{name}: {score.why}"
    return ""


def _measured(experience: Experience) -> NDArray[np.float32]:
    assert experience.logp is not None
    return experience.logp


def _finite(flat: Sequence[Experience], token_data: Mapping[str, Sequence[NDArray[np.float32]]]) -> None:
    """Raise AlignError where something that would be learned from is not a number."""
    for name, arrays in token_data.items():
        for experience, values in zip(flat, arrays, strict=True):
            if not np.isfinite(values).all():
                raise AlignError(
                    f"an answer to it has a {name} that is not finite",
                    "see the phase's samples; a model that gives NaN needs a lower learning rate or max_grad_norm",
                    where=experience.source,
                )
