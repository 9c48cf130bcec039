"""How many groups will teach nothing: what a model's own answers to the prompts earn, before it is trained on them.

A group whose answers all score the same has advantage 0 throughout. Of n answers to a prompt let c_v score v. Then

    P(m answers score the same) = sum_v C(c_v, m) / C(n, m)    m <= n, without bias
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
        """What it means for a run."""
        if not self.prompts:
            return ["no prompt had all its answers scored: nothing can be said of groups"]
        said = []
        for size, share in self.zero_variance.items():
            about = "at most " if size > self.n else ""
            said.append(f"groups of {size}: {about}{share:.0%} teach nothing")
        if self.none_right is not None and self.none_right > 0.5:
            said.append(
                f"too hard: no answer is right for {self.none_right:.0%} of prompts; train on easier ones first"
            )
        if self.all_right is not None and self.all_right > 0.5:
            said.append(f"too easy: all answers are right for {self.all_right:.0%} of prompts; leave those out")
        return said


def zero_variance_share(scores: Sequence[float], size: int) -> float:
    """Estimated probability that ``size`` answers to this prompt score the same; see the module's equations."""
    counts, n = [len(same) for same in classes(scores)], len(scores)
    if size <= n:
        return sum(comb(count, size) for count in counts) / comb(n, size)
    return sum((count / n) ** size for count in counts)


def estimate_difficulty(reward: RunningReward, lines: Sequence[InputLine], sampler: Sampler) -> Difficulty:
    """Sample ``sampler.n`` answers to every prompt and score them. Raises AlignError where no line has a prompt."""
    asked = [line for line in lines if line.answer is not None and line.answer.prompt]
    if not asked:
        raise AlignError("no row has a prompt", "give rows with prompt")
    records = [
        Record("prompt", line.where, prompt=line.answer.prompt, columns=line.answer.columns)
        for line in asked
        if line.answer is not None
    ]
    groups: list[list[float | None]] = []
    outcomes: list[Counter[str]] = []
    with working(f"sampling {sampler.n} answers to each of {len(records):,} prompts"):
        groups_of_answers = sampler.sample(records)
    for place, group in enumerate(groups_of_answers):
        answers = [each.answer(place) for each in group]
        verdicts = list(
            score_lines(reward, [InputLine(asked[place].where, answer) for answer in answers], len(answers))
        )
        groups.append([verdict.score.value for verdict in verdicts])
        outcomes.append(Counter(verdict.score.outcome for verdict in verdicts))
    whole = [[v for v in group if v is not None] for group in groups if None not in group]
    judged = [count for count in outcomes if count["right"] + count["wrong"] + count["unparsed"]]
    passed = sum(count["right"] for count in judged) / sum(map(Counter.total, judged)) if judged else None
    values = [value for group in whole for value in group]
    return Difficulty(
        n=sampler.n,
        prompts=len(whole),
        unscored=len(groups) - len(whole),
        mean=sum(values) / len(values) if values else None,
        passed=passed,
        zero_variance={size: sum(zero_variance_share(group, size) for group in whole) / len(whole) for size in SIZES}
        if whole
        else {},
        all_right=sum(count["right"] == count.total() for count in judged) / len(judged) if judged else None,
        none_right=sum(not count["right"] for count in judged) / len(judged) if judged else None,
    )
