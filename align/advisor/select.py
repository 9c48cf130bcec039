"""Select the answer from the votes, on two axes: the model's knowledge and its behaviour.

    knowledge   none | rag | continual_pretraining | both
    behaviour   prompting | post_training | best_of_n

A veto removes an option. Of the rest, hard votes count before soft ones. Where both axes have a hard one, the cheaper
comes first and the other is its companion; continual pre-training always has post-training as a companion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from align.advisor.predicates import tried
from align.advisor.project_facts import Facts
from align.advisor.rule import Ask, Option, Rule, Vote, Warn
from align.advisor.thresholds import Thresholds
from align.schemas.advice import Primary

LADDER: tuple[Option, ...] = ("prompting", "rag", "best_of_n", "post_training", "continual_pretraining")
"""Options by cost, the cheapest first."""
SOFT_ORDER: tuple[Option, ...] = (
    "rag",
    "continual_pretraining",
    "prompting",
    "best_of_n",
    "post_training",
    "insufficient",
)
"""The order without hard votes: missing knowledge first, then behaviour, the cheaper option first."""


@dataclass(frozen=True, slots=True)
class RuleOutcomes:
    """The results of all rules in the order of their ids; and the rules that failed, in words."""

    votes: tuple[Vote, ...]
    warnings: tuple[Warn, ...]
    questions: tuple[Ask, ...]
    failed: tuple[str, ...]


def run_rules(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule]) -> RuleOutcomes:
    """Run every rule. One that raises is left out and reported: a faulty plugin must not stop the advice."""
    results: list[Vote | Warn | Ask] = []
    failed: list[str] = []
    for name in sorted(rules):
        try:
            outcome = rules[name](facts, limit)
            found = [outcome] if isinstance(outcome, Vote | Warn | Ask) else list(outcome or ())
            results += [replace(one, rule=name) for one in found]
        except Exception as error:
            failed.append(f"rule {name} failed and was left out: {type(error).__name__}: {error}")
    return RuleOutcomes(
        tuple(result for result in results if isinstance(result, Vote)),
        tuple(result for result in results if isinstance(result, Warn)),
        tuple(result for result in results if isinstance(result, Ask)),
        tuple(failed),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer: the option to start with, its companions, and the weight of its votes."""

    option: Option
    others: tuple[Option, ...]
    weight: str

    @property
    def primary(self) -> Primary:
        """The option as advice names it; sampling the best of several is behaviour without training."""
        return "post_training" if self.option == "best_of_n" else self.option

    @property
    def options(self) -> tuple[Option, ...]:
        """The advised options, the one to start with in front."""
        return (self.option, *self.others)


def supported(votes: Iterable[Vote]) -> dict[Option, str]:
    """Return every option with a vote for it and no veto, with its weight."""
    votes = list(votes)
    out = {f.option for f in votes if f.weight == "veto"}
    weights: dict[Option, str] = {}
    for f in votes:
        if f.weight != "veto" and f.option not in out:
            weights[f.option] = "hard" if "hard" in (f.weight, weights.get(f.option)) else "soft"
    return weights


def choose(facts: Facts, votes: Sequence[Vote]) -> Selection:
    """Return the answer that the votes add up to."""
    weights = supported(votes)
    ruled_out = {f.option for f in votes if f.weight == "veto"}
    hard = [option for option in _hard_order(facts) if weights.get(option) == "hard"]
    if hard == ["rag"] and tried(facts, "rag") and "post_training" in weights:
        hard = ["post_training", "rag"]  # retrieval is in use and stays; what is new is the behaviour
    if hard:
        first, *others = hard
    else:
        first = next((option for option in SOFT_ORDER if option in weights), "insufficient")
        others = []
    if first == "continual_pretraining" and "post_training" not in (*others, *ruled_out):
        others.append("post_training")
    if first == "rag" and "prompting" in weights and "prompting" not in others:
        others.append("prompting")  # its rules are the prompt's work
    return Selection(first, tuple(others), weights.get(first, "soft"))


def _hard_order(facts: Facts) -> tuple[Option, ...]:
    """Return the options in the order to start with. Retrieval that was tried already comes after behaviour."""
    behaviour: tuple[Option, ...] = ("best_of_n", "post_training")
    known: tuple[Option, ...] = ("rag",)
    middle = behaviour + known if tried(facts, "rag") else known + behaviour
    return ("continual_pretraining", *middle, "prompting", "insufficient")
