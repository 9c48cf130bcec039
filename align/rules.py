"""Parts of advice rules: what a rule is given, what it returns, and the questions that the built-in rules share.

[rules.md](rules.md) explains how advice comes about and how to write a rule.
"""

from align.advisor.data_budget import budget_of, denied, enough, fewer, format_count, some, tokens
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
    has_goal,
    purpose,
    requested_by_user,
    scorer,
    skill,
    tried,
    wants_behaviour,
    wants_scorer,
)
from align.advisor.project_facts import Conflict, Facts
from align.advisor.rule import Ask, Option, RuleResult, Vote, Warn, Weight
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
    "JUDGED",
    "ONLINE",
    "Option",
    "RuleResult",
    "SAMPLING",
    "SCORERS",
    "TRAINED_ON",
    "TRAINING",
    "Thresholds",
    "Vote",
    "Warn",
    "Weight",
    "apart",
    "asked",
    "best_prompt",
    "budget_of",
    "denied",
    "enough",
    "falls_short",
    "fewer",
    "format_count",
    "gap",
    "has_goal",
    "lookup_helps",
    "purpose",
    "requested_by_user",
    "rescaled",
    "rows_to_settle",
    "scorer",
    "skill",
    "some",
    "target",
    "tokens",
    "tried",
    "wants_behaviour",
    "wants_scorer",
]
