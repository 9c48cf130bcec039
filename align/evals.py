"""Parts of evals: items, queries and replies, results and rows, and reading published data files.

The base class is ``align.Eval``; ``docs/evals.md`` shows one.
"""

from align.core.data.sources import load_rows
from align.core.evaluation.eval import (
    Episode,
    Generate,
    Item,
    LogLikelihood,
    Query,
    Reply,
    Result,
    Row,
    by_hash,
    mean,
    sha,
)
from align.core.evaluation.ratings import Rating
from align.core.evaluation.repeated_samples import maj_at_k, pass_hat_k
from align.core.evaluation.win_rates import (
    ArenaItem,
    ArenaScore,
    Gamed,
    LengthControlled,
    Style,
    arena_hard_scores,
    length_controlled_metric,
    length_controlled_win_rate,
    outcome,
    style,
)
from align.schemas.evals import Domain, EvalSettings

__all__ = [
    "ArenaItem",
    "ArenaScore",
    "Domain",
    "Episode",
    "EvalSettings",
    "Gamed",
    "Generate",
    "Item",
    "LengthControlled",
    "LogLikelihood",
    "Query",
    "Rating",
    "Reply",
    "Result",
    "Row",
    "Style",
    "arena_hard_scores",
    "by_hash",
    "maj_at_k",
    "mean",
    "length_controlled_metric",
    "length_controlled_win_rate",
    "load_rows",
    "outcome",
    "pass_hat_k",
    "sha",
    "style",
]
