"""How much data there is against how much a method needs, in one unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.advisor.predicates import DATA_OF
from align.advisor.project_facts import Facts
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.project import DataKind, DataSet


@dataclass(frozen=True, slots=True)
class DataBudget:
    """What is given of what a stage learns from (None where unknown), and its floor."""

    given: int | None
    floor: Floor
    unit: Literal["rows", "tokens"]

    @property
    def thin(self) -> bool:
        """Known to be less than the stage wants."""
        return self.given is not None and self.given < self.floor.warn

    @property
    def hopeless(self) -> bool:
        """Known to be less than the stage can work with."""
        return self.given is not None and self.given < self.floor.below


def budget_of(data: DataSet | None, stage: str, limit: Thresholds) -> DataBudget:
    """Tokens of a corpus, rows of everything else; examples of which only the tokens are known count by these."""
    if stage == "continual_pretraining":
        return DataBudget(tokens(data, limit), limit.corpus_tokens, "tokens")
    rows = data.size.rows if data else None
    if data and rows is None and data.size.tokens is not None and stage == "sft":
        return DataBudget(data.size.tokens, limit.sft_tokens, "tokens")
    return DataBudget(rows, floor_of(stage, limit), "rows")


def floor_of(stage: str, limit: Thresholds) -> Floor:
    """How much of its data a stage needs: tokens of a corpus, rows of everything else."""
    floors = {
        "continual_pretraining": limit.corpus_tokens,
        "sft": limit.sft_rows,
        "dpo": limit.preference_rows,
        "kto": limit.feedback_rows,
        "reward_model": limit.reward_model_rows,
    }
    return floors.get(stage, limit.prompt_rows)


def first_use(kind: DataKind) -> str:
    """The stage that a kind of data is for, in the first place."""
    return next(stage for stage, used in DATA_OF.items() if used == kind)


def enough(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Whether there are data of a kind, and as many as their first use wants. Unknown numbers are given the doubt."""
    return kind in facts.kinds and not budget_of(facts.data(kind), first_use(kind), limit).thin


def some(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Return whether there are data of a kind, and not fewer than anything can be learned from."""
    return kind in facts.kinds and not budget_of(facts.data(kind), first_use(kind), limit).hopeless


def fewer(facts: Facts, kind: DataKind, limit: Thresholds) -> str:
    """Return below which amount of data a vote that rests on it changes: ``fewer than 500 rows of them``.

    That is the next floor below what is given: with 60 pairs there are fewer than 500 already.
    """
    found = budget_of(facts.data(kind), first_use(kind), limit)
    return f"fewer than {format_count(found.floor.below if found.thin else found.floor.warn)} {found.unit} of them"


def denied(facts: Facts, kind: DataKind) -> bool:
    """Return whether it is said that there is nothing of a kind."""
    said = [e for e in facts.evidence if e.field in (f"data.{kind}", f"data.{kind}.rows")]
    heard = [e for e in said if e.status in ("asserted", "negated")]
    return kind not in facts.kinds and any((e.status == "negated") != (e.value in (False, 0)) for e in heard)


def tokens(data: DataSet | None, limit: Thresholds) -> int | None:
    """Tokens of a body of text: counted, else from its bytes, else from its documents; None where nothing is known."""
    if data is None:
        return None
    size = data.size
    if size.tokens is not None:
        return size.tokens
    if size.bytes is not None:
        return round(size.bytes / limit.bytes_per_token)
    documents = size.docs if size.docs is not None else size.rows
    return None if documents is None else round(documents * limit.tokens_per_doc)


def format_count(number: float) -> str:
    """``5 billion``, ``300 million``, ``12,000``."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.4g} {name}"
    return f"{number:,.0f}"
