"""The answer that a description as a whole calls for, as far as words alone tell: a calibrated probability of each.

    P(answer | text) = softmax(W z),    P(stage or warning | text) = sigmoid(v z),    z = standardized (scores of all
    heads, the sizes of the likeliest numbers, the votes of the rules on what the lexicon reads)

W and v are fitted on texts that the heads were not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from align.advisor.reading.candidates import ScoredText
from align.advisor.reading.linear import Array, Weights
from align.schemas.advice import PlanStep, Primary

ANSWERS: tuple[Primary, ...] = get_args(Primary)
STAGES = ("continual_pretraining", "sft", "dpo", "kto", "reward_model", "online_rl", "best_of_n")
"""Stages whose presence in the plan is learned from texts; online_rl is grpo, rloo or ppo."""
WITNESS = 0.85
"""Share of descriptions of which a language model's facts are taken to give the right answer: a cautious guess."""
PART_OF = dict.fromkeys(("grpo", "rloo", "ppo"), "online_rl")
"""The names of a plan's stages among ``STAGES``, where they differ."""
WARNINGS = (
    "needs_eval_gate",
    "needs_rag_eval",
    "brittle_prompt",
    "data_freshness",
    "forgetting",
    "reward_hacking",
    "too_little_data",
    "license_or_privacy",
)
"""Warnings that are learned from texts; the others are too rare to learn."""
PARTS = (*STAGES, *WARNINGS)
LIKELY = -0.5
"""The score from which on a number's size is looked at."""


def answer_inputs(scored: ScoredText, primary: str, rules: Iterable[str], votes: Sequence[str]) -> Array:
    """Return z before it is standardized.

    primary, rules: the answer by what the lexicon reads, and the rules that vote on it. votes: all rules known.
    """
    voted = {*rules}
    best = scored.best_number
    sizes = np.zeros_like(best)
    for head in np.flatnonzero(best > LIKELY):
        value = scored.found[int(scored.numbers[:, head].argmax())].number.value
        sizes[head] = np.log10(max(value, 1e-2))
    decided = [primary == answer for answer in ANSWERS] + [rule in voted for rule in votes]
    return np.concatenate([scored.text, scored.best_sentence, best, sizes, decided]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The advice to expect on a text.

    answers: the log-probability of each. stages: the log-probabilities that a stage is absent, and that it is in the
    plan. warnings: the log-odds of each.
    """

    answers: dict[Primary, float]
    stages: dict[str, tuple[float, float]]
    warnings: dict[str, float]

    def doubtful(self, steps: Iterable[PlanStep]) -> frozenset[str]:
        """Return the stages of a plan that are less likely than not."""
        chances = {stage: present for stage, (_, present) in self.stages.items()}
        chances["rag"] = -float(np.logaddexp(0, -self.warnings["needs_rag_eval"]))  # given with every plan that has it
        planned = {step.stage: PART_OF.get(step.stage, step.stage) for step in steps if not step.optional}
        return frozenset(stage for stage, part in planned.items() if chances.get(part, 0.0) < np.log(0.5))

    def updated(self, answer: Primary) -> Outlook:
        """Return the outlook once a language model's facts have led to an answer, as a witness's word counts."""
        wrong = (1 - WITNESS) / (len(ANSWERS) - 1)
        joint = {name: log + float(np.log(WITNESS if name == answer else wrong)) for name, log in self.answers.items()}
        total = float(np.logaddexp.reduce(list(joint.values())))
        return Outlook({name: log - total for name, log in joint.items()}, self.stages, self.warnings)


def outlook(inputs: Array, weights: Weights) -> Outlook:
    """Return the advice to expect on a text."""
    combined = weights.combined
    z = np.append((inputs - combined["mean"]) / combined["deviation"], 1.0)
    scores = z @ combined["answers"]
    scores = scores - scores.max()
    answers = scores - np.log(np.exp(scores).sum())
    margins = z @ combined["parts"]
    absent, present = -np.logaddexp(0, margins), -np.logaddexp(0, -margins)
    return Outlook(
        {name: float(answers[at]) for at, name in enumerate(ANSWERS)},
        {name: (float(absent[at]), float(present[at])) for at, name in enumerate(STAGES)},
        {name: float(margins[at]) for at, name in enumerate(WARNINGS, len(STAGES))},
    )
