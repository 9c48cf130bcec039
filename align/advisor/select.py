"""From votes to an answer on two axes: what the model must know, and how it must act.

    knowledge   none | rag | continual_pretraining | both
    behaviour   prompting | post_training | best_of_n

What is ruled out is out. Of what remains, hard votes count before soft ones. Where both axes have a hard one, the
cheaper is started with and the other is its companion; continual pre-training always brings post-training along.
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
"""Options by what they cost, the cheapest first."""
SOFT_ORDER: tuple[Option, ...] = (
    "rag",
    "continual_pretraining",
    "prompting",
    "best_of_n",
    "post_training",
    "insufficient",
)
"""Where nothing is hard: what is lacking in knowledge first, then the cheaper way to behave."""


@dataclass(frozen=True, slots=True)
class RuleOutcomes:
    """What all rules said: votes, warnings and questions in the order of their ids; and which rules failed."""

    votes: tuple[Vote, ...]
    warnings: tuple[Warn, ...]
    questions: tuple[Ask, ...]
    failed: tuple[str, ...]


def run_rules(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule]) -> RuleOutcomes:
    """Ask every rule. One that raises is left out, and said to be: it may be a stranger's."""
    said: list[Vote | Warn | Ask] = []
    failed: list[str] = []
    for name in sorted(rules):
        try:
            outcome = rules[name](facts, limit)
            found = [outcome] if isinstance(outcome, Vote | Warn | Ask) else list(outcome or ())
            said += [replace(one, rule=name) for one in found]
        except Exception as error:
            failed.append(f"rule {name} failed and was left out: {type(error).__name__}: {error}")
    return RuleOutcomes(
        tuple(s for s in said if isinstance(s, Vote)),
        tuple(s for s in said if isinstance(s, Warn)),
        tuple(s for s in said if isinstance(s, Ask)),
        tuple(failed),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer: where to start, and what goes with it."""

    option: Option
    others: tuple[Option, ...]
    weight: str

    @property
    def primary(self) -> Primary:
        """The option as advice names it; sampling the best of several is behaviour without training."""
        return "post_training" if self.option == "best_of_n" else self.option

    @property
    def options(self) -> tuple[Option, ...]:
        """All that is advised, the first to start with in front."""
        return (self.option, *self.others)


def supported(votes: Iterable[Vote]) -> dict[Option, str]:
    """Every option that something speaks for and nothing rules out, with its weight."""
    votes = list(votes)
    out = {f.option for f in votes if f.weight == "veto"}
    weights: dict[Option, str] = {}
    for f in votes:
        if f.weight != "veto" and f.option not in out:
            weights[f.option] = "hard" if "hard" in (f.weight, weights.get(f.option)) else "soft"
    return weights


def choose(facts: Facts, votes: Sequence[Vote]) -> Selection:
    """The answer that votes add up to."""
    weights = supported(votes)
    ruled_out = {f.option for f in votes if f.weight == "veto"}
    hard = [option for option in _hard_order(facts) if weights.get(option) == "hard"]
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
    """Which of several hard options is started with. Retrieval that is there already needs no start."""
    behaviour: tuple[Option, ...] = ("best_of_n", "post_training")
    known: tuple[Option, ...] = ("rag",)
    middle = behaviour + known if tried(facts, "rag") else known + behaviour
    return ("continual_pretraining", *middle, "prompting", "insufficient")
