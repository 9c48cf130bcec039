"""Metrics of an online stage's phases, and alarms on them: is it still learning what it was meant to?

A phase with nothing to learn from (``signal``) is reported at once, the first one too. Every other detector decides
for a phase whether it is past its threshold. ``patience`` such phases in a row raise one alarm; as many normal ones
end the episode, and the next may be raised. They raise nothing in the first ``warmup`` phases, whose mean is the base
line. A metric that a phase lacks, or that is not finite, leaves its detector as it was. The exception are the shares of
failed rewards, which are logged only where something failed: one that is missing is 0.

Reward hacking (reward r, gold reward g, both with standard errors; 0: the mean of the first W phases; *: the mean of
those W phases in a row whose gold is the best so far, as gold often rises before it falls, 2210.10760 Fig. 1):

    z(x, y) = (x - y) / sqrt(s_x^2 + s_y^2)        the standard error of a mean of W phases is sqrt(sum s^2) / W

    z(r, r_0) > k   and   z(g*, g) > k   and not   z(r*, r) > k        k the threshold, Watch.gold

That g* is the best of many is a bias towards alarms, which k must outweigh: docs/watching.md has the measured rates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from align.core.algorithm.contract import Group
from align.core.rewards.reward_base import Score
from align.core.rewards.scorer import ROUNDING, Scored, tied
from align.schemas.run import Watch
from align.schemas.text import number, percent

if TYPE_CHECKING:
    pass

# What is logged of a phase's answers, under TRL's names. docs/watching.md says what each means.

FAILURES = ("unparsed", "abstained", "timeout", "error")


def answer_metrics(lengths: Sequence[int], cut: Sequence[bool]) -> dict[str, float]:
    """Return lengths in tokens, of all answers and of those that ended by themselves; the share that was cut off."""
    found = _range("completions/{}_length", lengths)
    ended = [length for length, over in zip(lengths, cut, strict=True) if not over]
    return (
        found | {"completions/clipped_ratio": float(np.mean(cut))} | _range("completions/{}_terminated_length", ended)
    )


def score_metrics(scored: Sequence[Scored], gold: Sequence[Score | None], group: int = 1) -> dict[str, float]:
    """Return the reward, its parts, how often each part failed, and the gold reward if there is one.

    group: how many answers, one after the other, were given to each prompt.
    """
    rewards = [each.reward for each in scored]
    found = _estimate("reward", rewards, group)
    if scored:
        found["reward/scored"] = sum(reward is not None for reward in rewards) / len(rewards)
    for name in scored[0].scores if scored else ():
        scores = [each.scores[name] for each in scored]
        values = [score.value for score in scores if score.value is not None]
        if values:
            found[f"rewards/{name}/mean"] = float(np.mean(values))
            found[f"rewards/{name}/std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        for outcome in FAILURES:
            share = sum(score.outcome == outcome for score in scores) / len(scores)
            if share:
                found[f"rewards/{name}/{outcome}"] = share
    if any(score is not None for score in gold):
        found |= _estimate("gold", [None if score is None else score.value for score in gold], group)
    return found


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the mean standard deviation of rewards within groups, and the share of groups without any."""
    compared = [group for group in groups if len(group) > 1]
    if not compared:
        return {}
    spread, none = [_spread(group) for group in compared], [zero_variance(group) for group in compared]
    return {"reward_std": float(np.mean(spread)), "frac_reward_zero_std": float(np.mean(none))}


def zero_variance(group: Group) -> bool:
    """Return whether a group cannot tell better from worse.

    Its rewards are the same but for rounding (``ties``), or fewer than two of them are known.
    """
    return len(group) > 1 and tied(_known(group), max(experience.size for experience in group))


def level(group: Group) -> None:
    """Make the known rewards of a group without variance exactly equal, in place.

    They may differ by rounding, and an advantage that is divided by their standard deviation would make ±1 of that.
    """
    known = [experience for experience in group if experience.reward is not None]
    for experience in known:
        experience.reward = known[0].reward


def _spread(group: Group) -> float:
    return 0.0 if zero_variance(group) else float(np.std(_known(group), ddof=1))


def _known(group: Group) -> list[float]:
    return [experience.reward for experience in group if experience.reward is not None]


def _estimate(name: str, values: Sequence[float | None], group: int) -> dict[str, float]:
    """Return the mean, and its standard error from the groups' means: answers to one prompt are not independent."""
    groups = [[v for v in values[i : i + group] if v is not None] for i in range(0, len(values), group)]
    means = [np.mean(known) for known in groups if known]
    if not means:
        return {}
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return {name: float(np.mean([v for v in values if v is not None])), f"{name}/std_error": error}


def _range(name: str, values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {name.format(how): float(f(values)) for how, f in (("mean", np.mean), ("min", np.min), ("max", np.max))}


UNSCORED, EQUAL = "nothing scored", "all groups equal"
"""Names of the alarms for the two ways in which a phase has nothing to learn from."""

NO_VARIANCE, CUT_OFF, LOST, FAILED = 0.8, 0.5, 0.1, 0.05
"""Shares above which a hint is given: groups without variance, answers cut off, importance mass lost, answers on which
a reward failed."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to look at. what: a sentence with the numbers. fix: the next step.

    A hint says that a stage learns slowly or wastes samples: it is printed and never stops a run.
    """

    name: str
    what: str
    fix: str
    hint: bool = False


Judged = Iterator[tuple[Alarm, bool]]
"""The alarms that a detector would raise, each with True if the phase is past its threshold."""


def signal(metrics: Mapping[str, float], compares: bool = True) -> str:
    """Return why a phase had nothing to learn from: ``UNSCORED``, ``EQUAL``, or "" where it had.

    compares: whether the algorithm learns from differences within a group alone (``Online.compares``). Else a phase is
    equal where its prompts' mean rewards are the same too.
    """
    if metrics.get("reward/scored") == 0:
        return UNSCORED
    equal = metrics.get("frac_reward_zero_std") == 1
    if not compares:
        rounding = ROUNDING * abs(metrics.get("reward", 0.0))
        equal = equal and metrics.get("rollout/prompts", 2.0) > 1 and metrics.get("reward/std_error", 0.0) <= rounding
    return EQUAL if equal else ""


class Watcher:
    """Detectors that are given every phase's metrics in turn."""

    def __init__(self, settings: Watch, compares: bool = True) -> None:
        """See ``signal`` for ``compares``."""
        self.settings, self.compares = settings, compares
        self.signals: Counter[str] = Counter()
        """Number of phases by their ``signal``: what they lacked to be learned from, "" where nothing."""
        self._first: dict[str, list[float]] = {"entropy": [], "completions/mean_length": []}
        self._streak: dict[str, int] = {}  # phases in a row that differ from the detector's state
        self._raised: set[str] = set()
        self._recent: list[Pair] = []
        self._start: Pair | None = None
        self._best: Pair | None = None

    def look(self, phase: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Return the alarms that this phase raises. phase: counted from 1; metrics: under TRL's names."""
        now = {name: value for name, value in metrics.items() if math.isfinite(value)}
        alarms = [alarm for alarm, past, at_once in self._signal(now) if self._begins(alarm.name, past, at_once)]
        if phase > self.settings.warmup:
            for judged in (self._entropy(now), self._kl(now), self._length(now), self._gold(now), self._hints(now)):
                alarms += [alarm for alarm, past in judged if self._begins(alarm.name, past)]
        self._remember(now)
        return alarms

    def _begins(self, name: str, past: bool, at_once: bool = False) -> bool:
        """Return whether an episode begins with this phase. at_once: without patience."""
        raised = name in self._raised
        self._streak[name] = self._streak.get(name, 0) + 1 if past != raised else 0
        patience = 1 if at_once else self.settings.patience
        if self._streak[name] < patience:
            return False
        self._streak[name] = 0
        self._raised ^= {name}
        return not raised

    def _remember(self, now: Mapping[str, float]) -> None:
        for name, values in self._first.items():
            if name in now and len(values) < self.settings.warmup:
                values.append(now[name])
        if pair := _pair(now):
            self._recent = [*self._recent, pair][-self.settings.warmup :]
            if len(self._recent) == self.settings.warmup:
                mean = _mean(self._recent)
                self._start = self._start or mean
                self._best = mean if self._best is None or mean.gold > self._best.gold else self._best

    def _base(self, name: str) -> float | None:
        """Return the mean of the first phases, once they are over."""
        values = self._first[name]
        return sum(values) / len(values) if len(values) == self.settings.warmup else None

    @property
    def _phases(self) -> str:
        return f"for {self.settings.patience} phases in a row"

    def _signal(self, now: Mapping[str, float]) -> Iterator[tuple[Alarm, bool, bool]]:
        """Yield the alarms of a phase with nothing to learn from, whether they hold, and whether they need no patience.

        A phase without any score is a failure. One whose groups all lack variance may come by chance among others, but
        as long as no phase was better nothing has been learned at all.
        """
        if "reward/scored" not in now:
            return
        found = signal(now, self.compares)
        self.signals[found] += 1
        yield (
            Alarm(UNSCORED, f"no answer was scored, so there was nothing to learn from{_failures(now)}", CHECK),
            found == UNSCORED,
            True,
        )
        what = "in every group all answers got the same reward, so there was nothing to learn from"
        yield Alarm(EQUAL, what, VARY, hint=True), found == EQUAL, not self.signals[""]

    def _entropy(self, now: Mapping[str, float]) -> Judged:
        share, entropy, base = self.settings.entropy, now.get("entropy"), self._base("entropy")
        if share is not None and entropy is not None and base:
            what = (
                f"entropy {self._phases} below {percent(share)} of its base line: it is {number(entropy)} nats a token "
                f"and was {number(base)}"
            )
            fix = "where rewards no longer rise: widen the upper clip range, raise beta, or lower the learning rate"
            yield Alarm("entropy", what, fix), entropy < share * base

    def _kl(self, now: Mapping[str, float]) -> Judged:
        limit, kl = self.settings.kl, now.get("kl")
        if limit is not None and kl is not None:
            what = f"KL to the reference {self._phases} above {number(limit)} nats a token: it is {number(kl)}"
            yield (
                Alarm("kl", what, "go back to before it rose, with a lower learning rate or a higher beta"),
                kl > limit,
            )

    def _length(self, now: Mapping[str, float]) -> Judged:
        name = "completions/mean_length"
        factor, length, base = self.settings.length, now.get(name), self._base(name)
        if factor is not None and length is not None and base:
            longer = length > base
            what = (
                f"answers {self._phases} more than {number(factor)} times {'longer' if longer else 'shorter'} than at "
                f"first: {number(length)} tokens, from {number(base)}"
            )
            fix = (
                "read the samples: where length does not earn its reward, add the length reward or average the loss "
                "over tokens"
                if longer
                else "read the samples: where answers have become empty, fix the reward that pays for it"
            )
            yield Alarm("length", what, fix), length > factor * base or length * factor < base

    def _gold(self, now: Mapping[str, float]) -> Judged:
        errors, pair, start, best = self.settings.gold, _pair(now), self._start, self._best
        if errors is not None and pair and start and best:
            risen = _errors(pair.reward, start.reward, pair.reward_var + start.reward_var)
            fallen = _errors(best.gold, pair.gold, best.gold_var + pair.gold_var)
            followed = _errors(best.reward, pair.reward, best.reward_var + pair.reward_var)
            what = (
                f"reward up and gold reward down {self._phases}: reward {number(pair.reward)}, {number(risen)} "
                f"standard errors above its start ({number(start.reward)}); gold {number(pair.gold)}, {number(fallen)} "
                f"standard errors below its best ({number(best.gold)})"
            )
            fix = "read the best-paid samples for what the reward overpays, fix it, go back to before gold fell"
            yield Alarm("gold", what, fix), risen > errors and fallen > errors and not followed > errors

    def _hints(self, now: Mapping[str, float]) -> Judged:
        """Yield hints for shares that waste samples, each with its own episode."""
        failures = {name: 0.0 for name in self._streak if name.startswith("rewards/")}
        # Groups without a score count as equal, which is no hint; and equal ones may still teach (``Online.compares``).
        equal_teaches_nothing = self.compares and signal(now) != UNSCORED
        for name, share in {**failures, **now}.items():
            if name == "frac_reward_zero_std" and not equal_teaches_nothing:
                continue
            if hint := _hint(name):
                limit, what, fix = hint
                yield Alarm(name, f"{what} {self._phases}: {percent(share)}", fix, hint=True), share > limit

    def state_dict(self) -> dict[str, Any]:
        """Return what the detectors remember, as plain values."""
        return {
            "first": {name: list(values) for name, values in self._first.items()},
            "streak": dict(self._streak),
            "raised": sorted(self._raised),
            "signals": dict(self.signals),
            "recent": [list(pair) for pair in self._recent],
            "start": list(self._start or ()),
            "best": list(self._best or ()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._first = {name: list(values) for name, values in state["first"].items()}
        self._streak, self._raised = dict(state["streak"]), set(state["raised"])
        self.signals = Counter(state["signals"])
        self._recent = [Pair(*pair) for pair in state["recent"]]
        self._start = Pair(*state["start"]) if state["start"] else None
        self._best = Pair(*state["best"]) if state["best"] else None


class Pair(NamedTuple):
    """Reward and gold reward, and their standard errors squared."""

    reward: float
    gold: float
    reward_var: float
    gold_var: float


def _pair(now: Mapping[str, float]) -> Pair | None:
    names = ("reward", "gold", "reward/std_error", "gold/std_error")
    if not all(name in now for name in names):
        return None
    reward, gold, reward_error, gold_error = (now[name] for name in names)
    return Pair(reward, gold, reward_error**2, gold_error**2)


def _mean(pairs: Sequence[Pair]) -> Pair:
    """Return the means over independent phases, and the variances of the means."""
    n = len(pairs)
    reward, gold, reward_var, gold_var = (sum(column) / n for column in zip(*pairs, strict=True))
    return Pair(reward, gold, reward_var / n, gold_var / n)


def _errors(high: float, low: float, variance: float) -> float:
    """Return by how many standard errors ``high`` is above ``low``; any difference between exact numbers counts."""
    if variance > 0:
        return (high - low) / math.sqrt(variance)
    return math.inf if high > low else 0.0


CHECK = "run `align reward score` on some answers of the samples: it says why there is no score"
VARY = "these groups teach nothing: choose harder or easier prompts, more answers each, or zero_std_groups: refill"


def _failures(now: Mapping[str, float]) -> str:
    """Return the shares of failures by reward, as in `` (python: error 100.0 %)``; "" where none failed."""
    found = []
    for name, share in now.items():
        head, _, rest = name.partition("/")
        reward, _, outcome = rest.rpartition("/")
        if head == "rewards" and outcome in FAILURES:
            found.append(f"{reward}: {outcome} {percent(share)}")
    return f" ({', '.join(found)})" if found else ""


def _hint(name: str) -> tuple[float, str, str] | None:
    """Return the limit of a share, what is wrong above it, and the next step; None for other metrics."""
    match name:
        case "frac_reward_zero_std":
            return NO_VARIANCE, "most groups got the same reward for all their answers", VARY
        case "completions/clipped_ratio":
            return (
                CUT_OFF,
                "many answers were cut off",
                "raise sampling.max_completion_length, or reward shorter answers",
            )
        case "sampling/lost_mass":
            fix = "let the generator compute in the trainer's precision, or set length_normalized of "
            fix += "importance_sampling_correction"
            return LOST, "the correction for the generator cut much of the importance mass away", fix
    if name.startswith("rewards/") and name.endswith(("/timeout", "/error")):
        reward, kind = name.removeprefix("rewards/").rsplit("/", 1)
        return (
            FAILED,
            f"reward {reward} failed on answers ({kind})",
            "try `align reward audit` and `align reward score`",
        )
    return None
