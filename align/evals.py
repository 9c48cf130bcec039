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
from align.schemas.evals import Domain, EvalSettings

__all__ = [
    "Domain",
    "Episode",
    "EvalSettings",
    "Generate",
    "Item",
    "LogLikelihood",
    "Query",
    "Reply",
    "Result",
    "Row",
    "by_hash",
    "mean",
    "load_rows",
    "sha",
]
