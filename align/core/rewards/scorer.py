"""The scores of all rewards of a stage and their weighted sum.

    reward = sum_k w_k s_k * (sum_k |w_k| / sum over the rewards with a score |w_k|)

so a reward that abstains is left out of the mean, which is not the same as a score of 0. If all with a weight abstain,
there is no reward.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, Outcome, Reward, RewardContext, Score, from_function
from align.core.rewards.worker_pool import Workers
from align.core.util.error_line import error_line
from align.core.util.liveness import waiting
from align.core.util.profile import profiled
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice
from align.schemas.text import concealed, redacted, secrets_of

RewardScores = Mapping[str, Score]
"""The scores of one completion, by the reward's name in the run."""

BOUND = (
    "set the reward's timeout: then it runs in workers, and an answer that takes longer costs only its own score; "
    "a slow reward that does end needs a longer devices.timeout"
)

EARLY_CALLS = 4
"""Calls of one reward under way at once while answers are generated; when they all are, one more takes the rest."""

LARGEST = (2 - 2.0**-23) * 2.0**127
"""The largest float32 number. Advantages are float32: past it a group's differences and variance overflow to NaN, which
means a completion without a score."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The reward of one completion (None: no reward scored it), and the score of each reward.

    learned: the sum of normalised scores, from which advantages are made; without normalisation it is the reward.
    size: the sum of the absolute values of the numbers in ``learned``, which bounds its rounding error (``ties``).
    """

    reward: float | None
    scores: RewardScores
    learned: float | None
    size: float = 0.0

    @property
    def parts(self) -> dict[str, float | None]:
        """Each reward's own score."""
        return {name: score.value for name, score in self.scores.items()}

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Each reward's outcome."""
        return {name: score.outcome for name, score in self.scores.items()}


def reward_of(choice: RewardChoice) -> Reward:
    """Return the reward that a run file chose, not opened yet; a function becomes one.

    Raises AlignError for bad settings.
    """
    made = registry.build("reward", choice)
    return made if isinstance(made, Reward) else from_function(made, choice.type)


def decisive(choice: RewardChoice) -> dict[str, Any]:
    """Return a choice as plain data, with its secrets concealed and without settings that affect no score."""
    limits = reward_of(choice).limits
    settings = {name: value for name, value in choice.settings.items() if name not in limits}
    return {**choice.model_dump(mode="json", exclude={"overlap"}), "settings": concealed(settings)}


@dataclass(frozen=True, slots=True)
class TimedScore:
    """A score, the seconds of the call that gave it, and the number of completions in that call (``together``)."""

    score: Score
    seconds: float
    together: int


class RunningReward:
    """An open reward: in this process, or in workers if it has a time limit for each completion."""

    def __init__(self, choice: RewardChoice, place: RewardContext) -> None:
        self.choice, self._accelerator = choice, place.accelerator
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
        """Return a checked score for each completion; a number that is not finite becomes an ``error``.

        Raises AlignError if a reward without a time limit fails, or gives another number of scores.
        """
        return [timed.score for timed in self.timed(answers)]

    def timed(self, answers: Sequence[Answer]) -> list[TimedScore]:
        """Return the scores with the time that each took: its own in workers, else that of the call for all.

        Raises AlignError as ``score``.
        """
        since = time.perf_counter()
        with self._without_secrets():
            if self._workers is not None:
                timed = self._workers.timed(answers)
                return [TimedScore(self._clean(_checked(score)), seconds, 1) for score, seconds in timed]
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
    def overlaps(self) -> bool:
        """True if groups are scored as they finish, while others are still generated (``Reward.overlaps``)."""
        if self.choice.overlap is not None:
            return self.choice.overlap
        # Workers score each completion by itself. On a CPU they would compete with generation, against the clock.
        return self._accelerator == "cuda" if self._workers is not None else self.reward.overlaps

    @property
    def parallel(self) -> bool:
        """True if several calls may be under way at once: in workers, and by a class that says so (``overlaps``)."""
        return self._workers is not None or self.reward.overlaps

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
        """Close the reward and end its workers."""
        self.reward.close()
        if self._workers is not None:
            self._workers.close()


class Scorer:
    """The rewards of a stage. ``with Scorer(choices, place) as scorer: scorer.score(answers)``."""

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
        """Return the reward of every completion, in their order."""
        return self.combine(self.score_each(answers))

    @profiled("reward")
    def score_each(self, answers: Sequence[Answer]) -> list[RewardScores]:
        """Return the scores of every completion by every reward."""
        columns = {name: reward.score(answers) for name, reward in self.rewards.items()}
        return [{name: scores[i] for name, scores in columns.items()} for i in range(len(answers))]

    def combine(self, rows: Sequence[RewardScores], update: bool = True) -> list[Scored]:
        """Return the weighted sums of the scores of each completion.

        update: the running means of normalised rewards take in these scores first. All processes must give the same
        rows, or their means would differ.
        """
        if update:
            for name, running in self._running.items():
                running.update([scores[name].value for scores in rows])
        combined = []
        for scores in rows:
            reward, _ = self._sum(scores, {})
            learned, size = self._sum(scores, self._running)
            combined.append(Scored(reward, scores, learned, size))
        return combined

    def _sum(self, scores: RewardScores, running: Mapping[str, _Running]) -> tuple[float | None, float]:
        """Return the weighted sum of the scores there are, and the absolute values of the numbers in it, added up.

        Both are scaled up for the rewards that abstained, so that a missing score does not lower the reward.
        """
        total = size = weight = 0.0
        for name, choice in self.choices.items():
            value = scores[name].value
            if value is not None:
                term, added = running[name].normal(value) if name in running else (value, abs(value))
                total, size = total + choice.weight * term, size + abs(choice.weight) * added
                weight += abs(choice.weight)
        whole = sum(abs(choice.weight) for choice in self.choices.values())
        return (total * whole / weight, size * whole / weight) if weight else (None, 0.0)

    def state_dict(self) -> dict[str, list[float]]:
        """Return count, mean and sum of squared differences of each normalised reward."""
        return {name: [running.count, running.mean, running.squares] for name, running in self._running.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        for name, values in state.items():
            self._running[name] = _Running(*values)


class GroupScoring:
    """Scoring of completions group by group, as they are generated, by rewards that ``overlap``; the others follow.

    ``with GroupScoring(rewards) as scoring:`` generate, with ``scoring.add`` as each group is finished; then
    ``scoring.finish()``. Leaving the block ends the threads; calls of a reward that are under way are waited for.
    """

    def __init__(self, rewards: Sequence[RunningReward]) -> None:
        self._groups: dict[int, Sequence[Answer]] = {}
        self._rewards = rewards
        self._early = {id(reward): _EarlyColumn(reward) for reward in rewards if reward.overlaps}

    def __enter__(self) -> GroupScoring:
        return self

    def __exit__(self, *_: object) -> None:
        for column in self._early.values():
            column.end(drop=True)

    def add(self, number: int, answers: Sequence[Answer]) -> None:
        """Have a group scored. number: its place among all groups."""
        self._groups[number] = answers
        for column in self._early.values():
            column.add(number, answers)

    @property
    def failed(self) -> bool:
        """True once a reward has failed, so that generating the rest is no use."""
        return any(column.error is not None for column in self._early.values())

    @profiled("reward")
    def finish(self) -> list[list[list[Score]]]:
        """Return the scores by each reward of each group's completions. Raises what the first reward to fail raised."""
        columns: dict[int, list[list[Score]]] = {}
        numbers = sorted(self._groups)
        for column in self._early.values():
            column.begin_rest()
        for reward in self._rewards:  # first: meanwhile the threads go on
            if id(reward) not in self._early and not self.failed:
                flat = [answer for number in numbers for answer in self._groups[number]]
                scores = iter(reward.score(flat))
                columns[id(reward)] = [list(islice(scores, len(self._groups[number]))) for number in numbers]
        for column in self._early.values():
            column.end()
        for column in self._early.values():
            if column.error is not None:
                raise column.error
            columns[id(column.reward)] = [column.scores[number] for number in numbers]
        return [columns[id(reward)] for reward in self._rewards]


class _EarlyColumn:
    """The scores of one reward by group, made in threads: each call has all groups that have finished and still wait.

    Scoring early may not end later than one call for everything, begun when generation ends. So what still waits then
    begins at once, next to the calls under way, which began before and have fewer answers. A reward that is not
    ``parallel`` has one call at a time, and its last one may have to wait for the one before.
    """

    def __init__(self, reward: RunningReward) -> None:
        self.reward = reward
        self.scores: dict[int, list[Score]] = {}
        self.error: BaseException | None = None
        self._waiting: list[tuple[int, Sequence[Answer]]] = []
        self._threads: list[threading.Thread] = []
        self._running, self._most = 0, EARLY_CALLS if reward.parallel else 1
        self._lock = threading.Lock()

    def add(self, number: int, answers: Sequence[Answer]) -> None:
        with self._lock:
            self._waiting.append((number, answers))
            self._begin()

    def begin_rest(self) -> None:
        """Begin what waits, since no group will be added."""
        with self._lock:
            if self.reward.parallel:
                self._most = EARLY_CALLS + 1
            self._begin()

    def end(self, drop: bool = False) -> None:
        """Wait until everything is scored. drop: leave out what has not begun."""
        with self._lock:
            if drop:
                self._waiting.clear()
        for thread in self._threads:  # one that begins another adds it to the list before it ends
            thread.join()

    def _begin(self) -> None:
        """Begin a call for all groups that wait, if there may be another one. The lock is held."""
        if self._waiting and self._running < self._most and self.error is None:
            groups, self._waiting = self._waiting, []
            self._running += 1
            # A daemon: a call that never returns must not keep an interrupted process alive.
            name = f"align-{self.reward.choice.type}"
            thread = threading.Thread(target=self._call, args=(groups,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _call(self, groups: Sequence[tuple[int, Sequence[Answer]]]) -> None:
        found: dict[int, list[Score]] = {}
        failed: BaseException | None = None
        try:
            scores = iter(self.reward.score([answer for _, answers in groups for answer in answers]))
            found = {number: list(islice(scores, len(answers))) for number, answers in groups}
        except BaseException as error:  # raised again in the main thread
            failed = error
        with self._lock:
            self.scores |= found
            self.error = self.error or failed
            self._running -= 1
            self._begin()


@dataclass(slots=True)
class _Running:
    """Mean and variance of all numbers so far (Welford 1962). squares: sum of squared differences from the mean."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: Sequence[float | None]) -> None:
        for value in values:
            if value is not None:
                self.count += 1
                before, self.mean = self.mean, self.mean + (value - self.mean) / self.count
                self.squares += (value - before) * (value - self.mean)

    def normal(self, value: float) -> tuple[float, float]:
        """Return the normalised value, and the absolute values of the numbers in it, added up and normalised too.

        Near the mean the first is only a rounding error, and the second gives the size of the numbers that caused it.
        """
        scale = (math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0) + 1e-6
        return (value - self.mean) / scale, (abs(value) + abs(self.mean)) / scale


def _checked(score: Score | float | None) -> Score:
    if score is None:
        return Score(None, "abstained")
    made = score if isinstance(score, Score) else Score(float(score))
    if made.value is not None:  # a numpy number becomes a plain one, for checkpoints and JSON
        made = replace(made, value=float(made.value))
    if made.value is not None and not abs(made.value) <= LARGEST:
        return replace(made, value=None, outcome="error", why=f"its score was {made.value}")
    return made


def _named(choices: Sequence[RewardChoice]) -> dict[str, RewardChoice]:
    """Return the rewards by name; the second of type ``format`` is ``format_2``."""
    named: dict[str, RewardChoice] = {}
    for choice in choices:
        same = sum(other.type == choice.type for other in named.values())
        named[choice.type if not same else f"{choice.type}_{same + 1}"] = choice
    return named


# --- equality of rewards up to rounding ------------------------------------------------------------------------------
#
# ``0.3`` and ``0.1 + 0.2`` are one reward, computed in two ways.
#
#     tied    max r - min r <= ROUNDING max(max |r|, size)
#
# size is the sum of the absolute values of the terms that a reward was added up from. A reward near 0 may be the
# difference of large terms and have their rounding error: 0.3 - (0.1 + 0.2) is -5.6e-17 and means 0, as size is 0.6.

ROUNDING = 2.0**-40
"""A relative difference: the rounding errors of some thousand float64 operations (2**-53 each) stay below it. Two
neighbouring float32 numbers differ by at least 2**-24 of the larger one, so no two float32 scores are taken for one."""


def tied(rewards: Sequence[float], size: float = 0.0) -> bool:
    """Return True if no two of the rewards differ by more than rounding."""
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= ROUNDING * max(abs(low), abs(high), size)


def reaches(reward: float, bound: float) -> bool:
    """Return True if a reward is at least ``bound``, up to rounding."""
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
    """Return the rewards of a prompt's completions, those equal up to rounding made exactly equal."""
    known = [each.reward for each in scored if each.reward is not None]
    size = max((each.size for each in scored), default=0.0)
    first = {reward: equal[0] for equal in classes(known, size) for reward in equal}
    return [None if each.reward is None else first[each.reward] for each in scored]
