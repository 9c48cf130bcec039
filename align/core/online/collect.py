"""One phase's answers: prompts shared out over the ranks, sampled, scored, gathered again, and measured.

Every answer has its own random numbers (run seed, place of its prompt in the run, number among its group), and what is
gathered is put in the prompts' order. So all ranks hold the same answers, and how many ranks there are is not seen.
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
from align.core.generation.base import Floats, Generator, Interrupt, ModelHandle, Request, Tokens
from align.core.generation.decode import seed_of
from align.core.models.policy import Policy, Scores, without_gradient_or_dropout
from align.core.models.precompute import detached_logp, token_values
from align.core.models.reference import ReferenceModel
from align.core.online.sync_check import check_sync
from align.core.rewards.base import Answer, Score
from align.core.rewards.scorer import RewardScores, Scorer
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Content, Record
from align.schemas.run import Rollout, Sampling

PROBED = 4
"""Sequences that the sync gate compares."""


class Failed(AlignError):
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
        """[P] what the model is asked."""
        return self.examples[i].sequences[0].tokens

    def row(self, i: int) -> Record:
        """The row it was made of."""
        return self.rows[self.examples[i].source]


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One answer, sampled and scored; plain values, as it travels between ranks."""

    tokens: Tokens
    logp: Floats
    finish: Literal["stop", "length"]
    text: str
    said: RewardScores
    gold: Score | None


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt with its answers. place: how many prompts were asked before it in this run."""

    place: int
    source: str
    prompt: Tokens
    content: Content
    answers: list[ScoredSample]


class Collector:
    """Asks, scores and measures. Every rank calls every method, with the same arguments."""

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
        asked = (prompts.tokens(i) for i in range(len(prompts)))
        probe = [(tokens[:1], tokens[1:]) for tokens in islice((t for t in asked if len(t) > 1), PROBED)]
        with self.forward():
            self.gap = check_sync(
                self.generator, self.policy, probe, self.batcher.pad_id, tolerance=self.rollout.sync_tolerance
            )
        self.synced = version

    def ask(
        self,
        prompts: Prompts,
        which: Sequence[int],
        places: Sequence[int],
        group: int,
        sampling: Sampling,
        interruptible: bool = True,
    ) -> list[PromptGroup]:
        """Sample and score ``group`` completions of each prompt in ``which``. Collective.

        places: how many prompts were answered before each of them in this run; their random numbers follow from it.
        Raises on all ranks what one had to raise: ``Interrupt``, or ``Failed`` for an AlignError.
        """
        stop = self.stop if interruptible else _never
        mine = range(self.batcher.rank, len(which), self.batcher.world_size)
        scored: list[list[ScoredSample]] | None = None
        problems: tuple[Problem, ...] = ()
        try:
            own, at = [which[i] for i in mine], [places[i] for i in mine]
            scored = self._sample_and_score(prompts, own, at, group, sampling, stop)
        except Interrupt:
            pass
        except AlignError as error:
            problems = error.problems
        gathered = all_gather_objects((scored, problems))
        if failed := [problem for _, problems in gathered for problem in problems]:
            raise Failed("", problems=tuple(dict.fromkeys(failed)))
        shares = [share for share, _ in gathered]
        if any(share is None for share in shares):
            raise Interrupt
        groups = []
        for i, (number, place) in enumerate(zip(which, places, strict=True)):
            answers = shares[i % self.batcher.world_size][i // self.batcher.world_size]
            row = prompts.row(number)
            groups.append(PromptGroup(place, row.source, prompts.tokens(number), row.prompt or "", answers))
        return groups

    def _sample_and_score(
        self,
        prompts: Prompts,
        which: Sequence[int],
        places: Sequence[int],
        group: int,
        sampling: Sampling,
        stop: Callable[[], bool],
    ) -> list[list[ScoredSample]]:
        """Return the completions of this rank's prompts."""
        requests = [
            Request(prompts.tokens(i), tuple(seed_of(self.seed, place, n) for n in range(group)))
            for i, place in zip(which, places, strict=True)
        ]
        forward = self.forward() if self.generator.shares_weights else nullcontext()  # an engine has its own precision
        with forward, torch.random.fork_rng(devices=[]):
            samples = contract.generate(self.generator, requests, sampling, stop=stop)
        answers, flat = list[Answer](), [sample for group_ in samples for sample in group_]
        for i, place, group_ in zip(which, places, samples, strict=True):
            row = prompts.row(i)
            opening = self.turns.opening(row)
            for sample in group_:
                tokens = tuple(sample.tokens.tolist())
                text = self.turns.text(tokens, opening)
                completion: Content = [{"role": "assistant", "content": text}] if row.conversational else text
                answers.append(Answer(row.prompt or "", completion, text, tokens, sample.finish, row.columns, place))
        scores = self.scorer.ask(answers)
        golds = [next(iter(each.values())) for each in self.gold.ask(answers)] if self.gold else [None] * len(answers)
        heard = [
            ScoredSample(sample.tokens, sample.logp, sample.finish, answer.text, said, gold)
            for sample, answer, said, gold in zip(flat, answers, scores, golds, strict=True)
        ]
        return [heard[i : i + group] for i in range(0, len(heard), group)]

    def measure(self, groups: Sequence[Group], logp: bool) -> None:
        """Fill in what the networks say of every answer's tokens: reference, critic and (where asked) policy."""
        scores: dict[str, Callable[[MicroBatch], torch.Tensor]] = {}
        if logp:
            scores["logp"] = partial(detached_logp, self.policy)
        if self.reference is not None:
            scores["ref_logp"] = self.reference.logp
        if self.critic is not None:
            scores["value"] = partial(_values, self.critic)
        answers = [experience for group in groups for experience in group]
        if not scores or not answers:
            return
        with self.forward():
            found = token_values(
                InMemory([example_of(experience, {}) for experience in answers]),
                list(scores.values()),
                device=next(self.policy.parameters()).device,
                layout=self.batcher.layout,
                pad_id=self.batcher.pad_id,
                micro_tokens=self.batcher.micro_tokens,
                micro_size=self.batcher.train.micro_batch_size,
            )
        for name, values in zip(scores, found, strict=True):
            for experience, mine in zip(answers, values, strict=True):
                setattr(experience, name, mine)


def _never() -> bool:
    return False


def _values(critic: Policy, micro: MicroBatch) -> torch.Tensor:
    with without_gradient_or_dropout(critic):
        scores: Scores = critic(micro)
    assert scores.value_T is not None
    return scores.value_T
