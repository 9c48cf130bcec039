"""Difficulty of prompts for a model before it is trained on them: the share of groups that will teach nothing.

The model samples completions of each prompt and a reward scores them. A group whose completions all score the same has
advantage 0 throughout. Of n completions of a prompt let c_v score v. Then

    P(m completions score the same) = sum_v C(c_v, m) / C(n, m)    m <= n, without bias
                               <= sum_v (c_v / n)^m            m >  n, in the mean (Jensen)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

from align.core.inference.sampler import Sampler
from align.core.rewards.score_file import InputLine, score_lines
from align.core.rewards.scorer import RunningReward, classes
from align.core.util.progress import working
from align.schemas.errors import AlignError
from align.schemas.records import Record

SIZES = (4, 8, 16)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The scores of n completions of each prompt, and what they mean for a run on these prompts.

    prompts: number with a score for every completion. unscored: number of the others. mean: of the scores, None
    without any. passed: share of the completions that are right, in [0, 1] (None for rewards that give no verdicts).
    zero_variance: estimated share of groups in which all score the same, by group size; for sizes over n an upper
    bound. all_right, none_right: shares of the prompts, as far as n completions show.
    """

    n: int
    prompts: int
    unscored: int
    mean: float | None
    passed: float | None
    zero_variance: Mapping[int, float]
    all_right: float | None
    none_right: float | None

    @property
    def sentences(self) -> list[str]:
        """Conclusions for a run, as sentences."""
        if not self.prompts:
            return ["no prompt had all its answers scored: nothing can be said of groups"]
        found = []
        for size, share in self.zero_variance.items():
            about = "at most " if size > self.n else ""
            found.append(f"groups of {size}: {about}{share:.0%} teach nothing")
        if self.none_right is not None and self.none_right > 0.5:
            found.append(
                f"too hard: no answer is right for {self.none_right:.0%} of prompts; train on easier ones first"
            )
        if self.all_right is not None and self.all_right > 0.5:
            found.append(f"too easy: all answers are right for {self.all_right:.0%} of prompts; leave those out")
        return found


def zero_variance_share(scores: Sequence[float], size: int) -> float:
    """Estimate the probability that ``size`` completions of a prompt score the same, by the module's equations.

    scores: of n completions. Unbiased for sizes up to n, an upper bound beyond.
    """
    counts, n = [len(same) for same in classes(scores)], len(scores)
    if size <= n:
        return sum(comb(count, size) for count in counts) / comb(n, size)
    return sum((count / n) ** size for count in counts)


def estimate_difficulty(reward: RunningReward, lines: Sequence[InputLine], sampler: Sampler) -> Difficulty:
    """Sample ``sampler.n`` completions of every prompt and score them. Raises AlignError if no line has a prompt."""
    records = [
        Record("prompt", line.where, prompt=line.answer.prompt, columns=line.answer.columns)
        for line in lines
        if line.answer is not None and line.answer.prompt
    ]
    if not records:
        raise AlignError("no row has a prompt", "give rows with prompt")
    groups: list[list[float | None]] = []
    outcomes: list[Counter[str]] = []
    with working(f"sampling {sampler.n} answers to each of {len(records):,} prompts"):
        sampled = sampler.sample(records)
    for place, completions in enumerate(sampled):
        inputs = [InputLine(records[place].source, completion.answer(place)) for completion in completions]
        verdicts = list(score_lines(reward, inputs, together=len(inputs)))
        groups.append([verdict.score.value for verdict in verdicts])
        outcomes.append(Counter(verdict.score.outcome for verdict in verdicts))
    whole = [[v for v in group if v is not None] for group in groups if None not in group]
    judged = [count for count in outcomes if count["right"] + count["wrong"] + count["unparsed"]]
    passed = all_right = none_right = None
    if judged:
        passed = sum(count["right"] for count in judged) / sum(map(Counter.total, judged))
        all_right = sum(count["right"] == count.total() for count in judged) / len(judged)
        none_right = sum(not count["right"] for count in judged) / len(judged)
    zero_variance = {}
    if whole:
        zero_variance = {size: sum(zero_variance_share(g, size) for g in whole) / len(whole) for size in SIZES}
    values = [value for group in whole for value in group]
    return Difficulty(
        n=sampler.n,
        prompts=len(whole),
        unscored=len(groups) - len(whole),
        mean=sum(values) / len(values) if values else None,
        passed=passed,
        zero_variance=zero_variance,
        all_right=all_right,
        none_right=none_right,
    )
