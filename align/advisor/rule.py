"""Rules: small functions from facts and thresholds to votes, warnings and questions.

    def changing_facts(facts: Facts, limit: Thresholds) -> Vote | None:
        if facts.project.knowledge.changes in ("monthly", "weekly", "daily", "realtime"):
            return Vote("rag", "hard", "the facts change faster than weights can", ("knowledge.changes",))

Rules are registered by id (``R-RAG-1``) through ``register_rules``. A rule may return one result, an iterable of
results, or None. It reads nothing but its arguments, so the same facts give the same advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from align.advisor.project_facts import Facts

Option = Literal["prompting", "rag", "continual_pretraining", "post_training", "best_of_n", "insufficient"]
"""The options that can be advised."""
Weight = Literal["hard", "soft", "veto"]
"""hard: enough by itself. soft: enough where there is no hard vote. veto: rules the option out."""


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote for an option, or against it.

    because: the sentence shown. fields: the fields of the form that it rests on, whose words are quoted. flips_if: the
    condition under which it would not hold. rubric: the line of the rubric (PROMPT, RAG, CPT, POST, ALG_...).
    rule: the id, filled in when it is called.
    """

    option: Option
    weight: Weight
    because: str
    fields: tuple[str, ...]
    flips_if: str = ""
    rubric: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Warn:
    """A warning, by its stable id (``forgetting``); ``error`` blocks a launch."""

    id: str
    text: str
    fields: tuple[str, ...] = ()
    level: Literal["note", "warning", "error"] = "warning"
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about a fact that must be known first.

    id: of the vocabulary goal, data, data_kind, data_size, reward, evals, model, hardware, or a rule's own
    (``measure_prompt``, ``reading.evals.target``): one question is asked for each. field: of the form.
    would_change: what the answer decides.
    """

    id: str
    field: str
    question: str
    would_change: str
    rule: str = ""


RuleResult = Vote | Warn | Ask
"""One thing that a rule returns."""
Rule = Callable[[Facts, Any], RuleResult | Iterable[RuleResult] | None]
