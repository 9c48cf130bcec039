"""One phase's completions: prompts are split over the ranks, answered, scored, gathered again, and measured.

Every completion has its own random numbers (run seed, position of its prompt in the run, number within its group), and
the gathered ones are in the order of the prompts. So all ranks hold the same completions, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import torch

from align.core.algorithm import contract
from align.core.algorithm.online import Group, example_of
from align.core.data.batch import MicroBatch
from align.core.data.examples import Examples, InMemory
from align.core.engine.checkpoint import all_gather_objects
from align.core.engine.steps import MicroBatcher
from align.core.generation.assistant_turn import TurnReader
from align.core.generation.base import Floats, Generator, Interrupt, ModelHandle, Request, Sample, Tokens
from align.core.generation.decode import seed_of
from align.core.models.policy import Policy, Scores, without_gradient_or_dropout
from align.core.models.precompute import detached_logp, token_values
from align.core.models.reference import ReferenceModel
from align.core.online.sync_check import check_sync
from align.core.rewards.reward import Answer, Score
from align.core.rewards.scorer import RewardScores, Scorer
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Content, Record
from align.schemas.run import Rollout, Sampling

PROBED = 4
"""Sequences that the sync gate compares."""


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


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt with its completions. position: the number of prompts sampled before it in this run."""

    position: int
    source: str
    prompt: Tokens
    content: Content
    completions: list[ScoredSample]


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
        """The optimizer step whose weights the generator holds."""
        self.gap: float | None = None
        """Largest difference of log-probabilities at the last sync."""

    def sync(self, version: int, prompts: Prompts) -> None:
        """Give the generator the policy's weights, and check by log-probabilities that it has them."""
        if self.generator.shares_weights or self.synced == version:
            return
        with contract.calling(self.generator, "sync"):
            self.generator.sync(self.policy, version)
        tokens = (prompts.tokens(i) for i in range(len(prompts)))
        probed = islice((prompt for prompt in tokens if len(prompt) > 1), PROBED)
        probe = [(prompt[:1], prompt[1:]) for prompt in probed]
        with self.forward():
            self.gap = check_sync(
                self.generator, self.policy, probe, self.batcher.pad_id, tolerance=self.rollout.sync_tolerance
            )
        self.synced = version

    def sample(
        self,
        prompts: Prompts,
        indices: Sequence[int],
        positions: Sequence[int],
        num_generations: int,
        sampling: Sampling,
        interruptible: bool = True,
    ) -> list[PromptGroup]:
        """Sample and score ``num_generations`` completions of each prompt in ``indices``. Collective.

        positions: the number of prompts sampled before each of them in this run, which their random numbers follow
        from. Raises on all ranks what one had to raise: ``Interrupt``, or ``PhaseFailed`` for an AlignError.
        """
        rank, world_size = self.batcher.rank, self.batcher.world_size
        stop = self.stop if interruptible else _never
        own: list[list[ScoredSample]] | None = None
        problems: tuple[Problem, ...] = ()
        try:
            own = self._sample_own(
                prompts, indices[rank::world_size], positions[rank::world_size], num_generations, sampling, stop
            )
        except Interrupt:
            pass  # raised again once every rank knows of it, or the others would wait for this one
        except AlignError as error:
            problems = error.problems
        gathered = all_gather_objects((own, problems))
        if failed := [problem for _, problems in gathered for problem in problems]:
            raise PhaseFailed("", problems=tuple(dict.fromkeys(failed)))
        by_rank = [completions for completions, _ in gathered]
        if any(completions is None for completions in by_rank):
            raise Interrupt
        groups = []
        for i, (index, position) in enumerate(zip(indices, positions, strict=True)):
            completions = by_rank[i % world_size][i // world_size]
            row = prompts.row(index)
            groups.append(PromptGroup(position, row.source, prompts.tokens(index), row.prompt or "", completions))
        return groups

    def _sample_own(
        self,
        prompts: Prompts,
        indices: Sequence[int],
        positions: Sequence[int],
        num_generations: int,
        sampling: Sampling,
        stop: Callable[[], bool],
    ) -> list[list[ScoredSample]]:
        """Return the scored completions of this rank's prompts."""
        requests = [
            Request(prompts.tokens(index), tuple(seed_of(self.seed, position, n) for n in range(num_generations)))
            for index, position in zip(indices, positions, strict=True)
        ]
        forward = self.forward() if self.generator.shares_weights else nullcontext()  # an engine has its own precision
        with forward, torch.random.fork_rng(devices=[]):
            sampled = contract.generate(self.generator, requests, sampling, stop=stop)
        samples, answers = list[Sample](), list[Answer]()
        for index, position, group in zip(indices, positions, sampled, strict=True):
            row = prompts.row(index)
            opening = self.turns.opening(row)
            for sample in group:
                tokens = tuple(sample.tokens.tolist())
                text = self.turns.text(tokens, opening)
                completion: Content = [{"role": "assistant", "content": text}] if row.conversational else text
                answer = Answer(row.prompt or "", completion, text, tokens, sample.finish, row.columns, position)
                samples.append(sample)
                answers.append(answer)
        gold: list[Score | None] = [None] * len(answers)
        if self.gold is not None:
            gold = [next(iter(scores.values())) for scores in self.gold.score_each(answers)]
        scored = [
            ScoredSample(sample.tokens, sample.logp, sample.finish, answer.text, scores, gold_score)
            for sample, answer, scores, gold_score in zip(
                samples, answers, self.scorer.score_each(answers), gold, strict=True
            )
        ]
        return [scored[i : i + num_generations] for i in range(0, len(scored), num_generations)]

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
        with self.forward():
            found = token_values(
                InMemory([example_of(experience, {}) for experience in flat]),
                list(scores.values()),
                device=next(self.policy.parameters()).device,
                layout=self.batcher.layout,
                pad_id=self.batcher.pad_id,
                micro_tokens=self.batcher.micro_tokens,
                micro_size=self.batcher.train.micro_batch_size,
            )
        for name, values in zip(scores, found, strict=True):
            for experience, mine in zip(flat, values, strict=True):
                setattr(experience, name, mine)


def _never() -> bool:
    return False


def _values(critic: Policy, micro: MicroBatch) -> torch.Tensor:
    with without_gradient_or_dropout(critic):
        scores: Scores = critic(micro)
    assert scores.value_T is not None
    return scores.value_T
