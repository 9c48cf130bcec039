"""Answers to rewards: every reward of a stage asked, their parts kept, and the weighted sum made.

    reward = sum_k w_k s_k * (sum_k |w_k| / sum over those that spoke |w_k|)

so a reward that abstains is left out of the mean, which is not the same as its saying 0. Where all of weight abstain
there is no reward.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from align.core.plugin_system.registry import registry
from align.core.rewards.base import Answer, Outcome, Reward, RewardContext, Score
from align.core.rewards.functions import from_function
from align.core.rewards.worker_pool import Workers
from align.core.util.error_line import error_line
from align.core.util.liveness import waiting
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice
from align.schemas.text import concealed, redacted, secrets_of

RewardScores = Mapping[str, Score]
"""What each reward said of one answer, by the reward's name in the run."""

BOUND = (
    "set the reward's timeout: then it runs in workers, and an answer that takes longer costs only its own score; "
    "a slow reward that does end needs a longer devices.timeout"
)

LARGEST = (2 - 2.0**-23) * 2.0**127
"""The largest float32 number. Advantages are float32: past it a group's differences and variance overflow to NaN, which
looks like an answer that nobody scored."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer's reward (None: nobody scored it), and what each reward said.

    learned: the reward made of normalised scores, to be learned from; where nothing is normalised it is the reward.
    size: the sum of the absolute values of the numbers in ``learned``, which bounds its rounding error (``ties``).
    """

    reward: float | None
    said: RewardScores
    learned: float | None
    size: float = 0.0

    @property
    def parts(self) -> dict[str, float | None]:
        """Each reward's own score."""
        return {name: score.value for name, score in self.said.items()}

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Each reward's outcome."""
        return {name: score.outcome for name, score in self.said.items()}


def reward_of(choice: RewardChoice) -> Reward:
    """Return the reward that a run file chose, not opened yet; a function becomes one.

    Raises AlignError for bad settings.
    """
    made = registry.build("reward", choice)
    return made if isinstance(made, Reward) else from_function(made, choice.type)


def decisive(choice: RewardChoice) -> dict[str, Any]:
    """A choice as plain data, without settings that decide no score (``Reward.limits``), its secrets concealed."""
    limits = reward_of(choice).limits
    settings = {name: value for name, value in choice.settings.items() if name not in limits}
    return {**choice.model_dump(mode="json"), "settings": concealed(settings)}


@dataclass(frozen=True, slots=True)
class TimedScore:
    """A score, the seconds of the call that gave it, and how many answers that call scored ``together``."""

    score: Score
    seconds: float
    together: int


class RunningReward:
    """One reward at work: in this process, or in workers where it has a limit for each answer."""

    def __init__(self, choice: RewardChoice, place: RewardContext) -> None:
        self.choice = choice
        self._secrets = [*secrets_of(choice.settings), *secrets_of(os.environ)]
        with self._without_secrets():
            self._open(place)

    def _open(self, place: RewardContext) -> None:
        choice = self.choice
        self.reward = reward_of(choice)
        limit = choice.timeout or self.reward.seconds
        if limit is not None and self.reward.compares:
            raise AlignError(
                "compares the answers of a group, and with a timeout each is asked by itself",
                "leave timeout out",
                where=f"{self._where}: timeout",
            )
        self._workers = None if limit is None else Workers(choice, limit, place=place)
        if self._workers is None:
            with waiting(f"{self._where} opens"):
                self.reward.open(place)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """A checked score for each answer; numbers that are not finite are no scores.

        Raises AlignError where a reward without a time limit fails, or gives another number of scores.
        """
        return [timed.score for timed in self.timed(answers)]

    def timed(self, answers: Sequence[Answer]) -> list[TimedScore]:
        """Return the scores with the time that each took: its own in workers, else that of the call for all.

        Raises AlignError as ``score``.
        """
        since = time.perf_counter()
        with self._without_secrets():
            if self._workers is not None:
                return [
                    TimedScore(self._clean(_checked(score)), seconds, 1)
                    for score, seconds in self._workers.timed(answers)
                ]
            scores = [self._clean(score) for score in self._score(answers)]
        seconds = time.perf_counter() - since
        return [TimedScore(score, seconds, len(answers)) for score in scores]

    def _score(self, answers: Sequence[Answer]) -> list[Score]:
        try:
            with waiting(f"{self._where} scores {len(answers)} answers", BOUND):
                scores = [_checked(score) for score in self.reward.score(answers)]
        except AlignError:
            raise
        except (Exception, SystemExit) as error:  # a reward's sys.exit(0) would end a run as if it were done
            fix = "fix it, or set its timeout: then it runs in workers, and a failure costs one answer its score"
            raise AlignError(f"failed: {error_line(error)}", fix, where=self._where) from error
        if len(scores) != len(answers):
            raise AlignError(f"gave {len(scores)} scores for {len(answers)} answers", where=self._where)
        return scores

    @property
    def _where(self) -> str:
        label = self.reward.label
        return f"reward {self.choice.type}" + (f" ({label})" if label else "")

    @contextmanager
    def _without_secrets(self) -> Iterator[None]:
        """Redact the errors of a reward, which may quote its settings, keys among them."""
        try:
            yield
        except AlignError as error:
            found = [
                replace(p, what=redacted(p.what, self._secrets), fix=redacted(p.fix, self._secrets))
                for p in error.problems
            ]
            if found == list(error.problems):
                raise
            raise AlignError.gather(found) from None  # the cause would show in a traceback what is left out here

    def _clean(self, score: Score) -> Score:
        """Return a score whose explanation holds no secret."""
        return replace(score, why=redacted(score.why, self._secrets)) if score.why else score

    def close(self) -> None:
        """Stop it."""
        self.reward.close()
        if self._workers is not None:
            self._workers.close()


class Scorer:
    """All rewards of a stage. ``with Scorer(choices, place) as scorer: scorer.score(answers)``."""

    def __init__(self, choices: Sequence[RewardChoice], place: RewardContext) -> None:
        self.choices, self.place = _named(choices), place
        self.rewards: dict[str, RunningReward] = {}
        self._running = {name: _Running() for name, choice in self.choices.items() if choice.normalize}

    def __enter__(self) -> Scorer:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Start every reward. Raises AlignError where one cannot work here; then none is left running."""
        try:
            for name, choice in self.choices.items():
                self.rewards[name] = RunningReward(choice, self.place)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop every reward."""
        for reward in self.rewards.values():
            reward.close()
        self.rewards = {}

    def score(self, answers: Sequence[Answer]) -> list[Scored]:
        """The reward of every answer, in their order."""
        return self.combine(self.ask(answers))

    def ask(self, answers: Sequence[Answer]) -> list[RewardScores]:
        """What every reward says of every answer."""
        columns = {name: reward.score(answers) for name, reward in self.rewards.items()}
        return [{name: scores[i] for name, scores in columns.items()} for i in range(len(answers))]

    def combine(self, said: Sequence[RewardScores], moves: bool = True) -> list[Scored]:
        """The weighted sums. Running means move on with these answers first: give all processes the same ones."""
        for name, running in self._running.items() if moves else ():
            running.enter([s[name].value for s in said])
        scored = []
        for each in said:
            reward, _ = self._sum(each, {})
            learned, size = self._sum(each, self._running)
            scored.append(Scored(reward, each, learned, size))
        return scored

    def _sum(self, said: RewardScores, running: Mapping[str, _Running]) -> tuple[float | None, float]:
        """Return the weighted sum of the scores there are, and the absolute values of the numbers in it, added up.

        Both are scaled up for the rewards that abstained, so that an answer is worth no less for a missing score.
        """
        total = size = weight = 0.0
        for name, choice in self.choices.items():
            value = said[name].value
            if value is not None:
                term, added = running[name].normal(value) if name in running else (value, abs(value))
                total, size = total + choice.weight * term, size + abs(choice.weight) * added
                weight += abs(choice.weight)
        whole = sum(abs(choice.weight) for choice in self.choices.values())
        return (total * whole / weight, size * whole / weight) if weight else (None, 0.0)

    def state_dict(self) -> dict[str, list[float]]:
        """The running means."""
        return {name: [running.count, running.mean, running.squares] for name, running in self._running.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        for name, values in state.items():
            self._running[name] = _Running(*values)


@dataclass(slots=True)
class _Running:
    """Mean and variance of all numbers so far (Welford 1962)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def enter(self, values: Sequence[float | None]) -> None:
        for value in values:
            if value is not None:
                self.count += 1
                before, self.mean = self.mean, self.mean + (value - self.mean) / self.count
                self.squares += (value - before) * (value - self.mean)

    def normal(self, value: float) -> tuple[float, float]:
        """Return the normalised value, and the absolute values of the numbers in it, added up and normalised too.

        Near the mean the first is all rounding, and the second says of what size.
        """
        scale = (math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0) + 1e-6
        return (value - self.mean) / scale, (abs(value) + abs(self.mean)) / scale


def _checked(score: Score | float | None) -> Score:
    if score is None:
        return Score(None, "abstained")
    made = score if isinstance(score, Score) else Score(float(score))
    if made.value is not None:  # a numpy number is no plain value, which checkpoints and JSON want
        made = replace(made, value=float(made.value))
    if made.value is not None and not abs(made.value) <= LARGEST:
        return replace(made, value=None, outcome="error", why=f"its score was {made.value}")
    return made


def _named(choices: Sequence[RewardChoice]) -> dict[str, RewardChoice]:
    """Rewards by name; the second of a type is ``format_2``."""
    named: dict[str, RewardChoice] = {}
    for choice in choices:
        same = sum(other.type == choice.type for other in named.values())
        named[choice.type if not same else f"{choice.type}_{same + 1}"] = choice
    return named


# Equality of rewards but for rounding: ``0.3`` and ``0.1 + 0.2`` are one reward, computed in two ways.
#
#     tied    max r - min r <= ROUNDING max(max |r|, size)
#
# size is the sum of the absolute values of the terms that a reward was added up from. A reward near 0 may be the rest
# of large terms, and its rounding error is theirs: 0.3 - (0.1 + 0.2) is -5.6e-17 and means 0, as size is 0.6.

ROUNDING = 2.0**-40
"""A relative difference: the rounding errors of some thousand float64 operations (2**-53 each) stay below it. Two
neighbouring float32 numbers differ by at least 2**-24 of the larger one, so no two float32 scores are taken for one."""


def tied(rewards: Sequence[float], size: float = 0.0) -> bool:
    """Return whether no two of the rewards differ by more than rounding."""
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= ROUNDING * max(abs(low), abs(high), size)


def reaches(reward: float, bound: float) -> bool:
    """Return whether a reward is at least ``bound``, rounding apart."""
    return reward >= bound or tied((reward, bound))


def classes(rewards: Iterable[float], size: float = 0.0) -> Iterator[list[float]]:
    """Yield the rewards in ascending order, in lists of equal ones."""
    equal: list[float] = []
    for reward in sorted(rewards):
        # Compared with the smallest: along a chain of neighbours the difference could grow without bound.
        if equal and not tied((equal[0], reward), size):
            yield equal
            equal = []
        equal.append(reward)
    if equal:
        yield equal


def leveled(scored: Sequence[Scored]) -> list[float | None]:
    """Return the rewards of one prompt's answers, with equal ones made exactly equal, so that ``>`` and ``==`` hold."""
    known = [each.reward for each in scored if each.reward is not None]
    size = max((each.size for each in scored), default=0.0)
    first = {reward: equal[0] for equal in classes(known, size) for reward in equal}
    return [None if each.reward is None else first[each.reward] for each in scored]
