"""Parts of advice rules: what a rule is given, what it returns, and the questions that the built-in rules share.

[rules.md](rules.md) explains how advice comes about and how to write a rule.
"""

from align.advisor.data_budget import big, denied, enough, fewer, some, stock, tokens
from align.advisor.measured_evidence import apart, best_prompt, lookup_helps, rescaled, rows_to_settle, target
from align.advisor.predicates import (
    AUTOMATIC,
    CHANGING,
    DATA_OF,
    FITS_WEIGHTS,
    JUDGED,
    ONLINE,
    SAMPLING,
    SCORERS,
    TRAINED_ON,
    TRAINING,
    asked,
    falls_short,
    gap,
    knows_what_for,
    own_wish,
    purpose,
    scorer,
    skill,
    tried,
    wants_behaviour,
    wants_scorer,
)
from align.advisor.project_facts import Conflict, Facts
from align.advisor.rule import Ask, Finding, Option, RuleResult, Warn, Weight
from align.advisor.thresholds import Thresholds
from align.schemas.project import DataKind

__all__ = [
    "AUTOMATIC",
    "Ask",
    "CHANGING",
    "Conflict",
    "DATA_OF",
    "DataKind",
    "FITS_WEIGHTS",
    "Facts",
    "Finding",
    "JUDGED",
    "ONLINE",
    "Option",
    "RuleResult",
    "SAMPLING",
    "SCORERS",
    "TRAINED_ON",
    "TRAINING",
    "Thresholds",
    "Warn",
    "Weight",
    "apart",
    "asked",
    "best_prompt",
    "big",
    "denied",
    "enough",
    "falls_short",
    "fewer",
    "gap",
    "knows_what_for",
    "lookup_helps",
    "own_wish",
    "purpose",
    "rows_to_settle",
    "rescaled",
    "scorer",
    "skill",
    "some",
    "stock",
    "target",
    "tokens",
    "tried",
    "wants_behaviour",
    "wants_scorer",
]
