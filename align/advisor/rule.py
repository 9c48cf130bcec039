"""What a rule is: one small function from facts and thresholds to what follows.

    def changing_facts(facts: Facts, limit: Thresholds) -> Vote | None:
        if facts.project.knowledge.changes in ("monthly", "weekly", "daily", "realtime"):
            return Vote("rag", "hard", "the facts change faster than weights can", ("knowledge.changes",))

Registered by id (``R-RAG-1``) through ``register_rules``, ours and strangers' alike. A rule may return one thing, an
iterable of things, or None. It looks at nothing but its arguments, so the same facts give the same advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from align.advisor.project_facts import Facts

Option = Literal["prompting", "rag", "continual_pretraining", "post_training", "best_of_n", "insufficient"]
"""What can be advised."""
Weight = Literal["hard", "soft", "veto"]
"""hard: by itself enough. soft: enough where nothing hard speaks. veto: rules the option out, whoever asks for it."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Something speaks for an option, or rules it out.

    because: the sentence shown. fields: those of the form that it rests on, whose words are quoted. flips_if: what
    would have to be otherwise for it not to hold. rubric: the line of the rubric (PROMPT, RAG, CPT, POST, ALG_...).
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
    """A danger, by its stable id (``forgetting``); ``error`` blocks a launch."""

    id: str
    text: str
    fields: tuple[str, ...] = ()
    level: Literal["note", "warning", "error"] = "warning"
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Something that must be known first.

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
