"""The amount of data given against the amount a method needs, in one unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.advisor.predicates import DATA_OF, JUDGED, PROGRAMS, TRAINED_ON, falls_short, scorer
from align.advisor.project_facts import Facts
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.project import DataKind, DataSet


@dataclass(frozen=True, slots=True)
class DataBudget:
    """The amount of data given to a stage (None where unknown), and its floor."""

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
    """Return a stage's budget: tokens of a corpus, rows of other data, tokens of examples whose rows are unknown."""
    if stage == "continual_pretraining":
        return DataBudget(tokens(data, limit), limit.corpus_tokens, "tokens")
    rows = data.size.rows if data else None
    if data and rows is None and data.size.tokens is not None and stage == "sft":
        return DataBudget(data.size.tokens, limit.sft_tokens, "tokens")
    return DataBudget(rows, floor_of(stage, limit), "rows")


def floor_of(stage: str, limit: Thresholds) -> Floor:
    """Return the amount of data a stage needs: tokens of a corpus, rows of everything else."""
    floors = {
        "continual_pretraining": limit.corpus_tokens,
        "sft": limit.sft_rows,
        "dpo": limit.preference_rows,
        "kto": limit.feedback_rows,
        "reward_model": limit.reward_model_rows,
    }
    return floors.get(stage, limit.prompt_rows)


def first_use(kind: DataKind) -> str:
    """Return the stage that a kind of data is primarily for."""
    return next(stage for stage, used in DATA_OF.items() if used == kind)


def enough(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Return whether there are as many data of a kind as their first use wants; an unknown number counts as enough."""
    return kind in facts.kinds and not budget_of(facts.data(kind), first_use(kind), limit).thin


def some(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Return whether there are data of a kind, and enough of them to learn anything from."""
    return kind in facts.kinds and not budget_of(facts.data(kind), first_use(kind), limit).hopeless


def fewer(facts: Facts, kind: DataKind, limit: Thresholds) -> str:
    """Return the amount of data below which a vote that rests on it changes: ``fewer than 500 rows of them``.

    It is the next floor below the amount given: 60 pairs are fewer than 500 already.
    """
    found = budget_of(facts.data(kind), first_use(kind), limit)
    return f"fewer than {format_count(found.floor.below if found.thin else found.floor.warn)} {found.unit} of them"


def denied(facts: Facts, kind: DataKind) -> bool:
    """Return whether the evidence states that there are no data of a kind."""
    stated = [
        e
        for e in facts.evidence
        if e.field in (f"data.{kind}", f"data.{kind}.rows") and e.status in ("asserted", "negated")
    ]
    # "no pairs" is a negated True or an asserted False or 0; a negated False is a double negation.
    return kind not in facts.kinds and any((e.status == "negated") != (e.value in (False, 0)) for e in stated)


def learnable(facts: Facts, limit: Thresholds) -> list[tuple[str, bool]]:
    """Return the fields of what behaviour could be learned from, each with whether there is plenty of it."""
    kinds: list[DataKind] = ["sft_pairs", *JUDGED]
    if scorer(facts):
        kinds.append("prompts")
    found = [(f"data.{kind}", enough(facts, kind, limit)) for kind in kinds if some(facts, kind, limit)]
    if not found and scorer(facts) in PROGRAMS:
        found.append(("reward.kind", False))
    return found


def exhausted(facts: Facts, limit: Thresholds) -> bool:
    """Return whether a prompt was seen to fall short, and nothing at all is known that could be learned from."""
    return falls_short(facts, limit) and not facts.kinds & {*TRAINED_ON} and not learnable(facts, limit)


def doubtful(facts: Facts) -> bool:
    """Return whether all data to learn behaviour from are only mentioned: their kind or number is not known."""
    spoken_of = any(e.value is not False for kind in TRAINED_ON for e in facts.all(f"data.{kind}", "attributed"))
    return spoken_of and not facts.kinds & {*TRAINED_ON}


def fits_prompt(facts: Facts, limit: Thresholds) -> bool:
    """Return whether the text on hand is known to be little enough to stand in every prompt."""
    texts = [tokens(facts.data(kind), limit) for kind in ("corpus", "documents") if kind in facts.kinds]
    known = [size for size in texts if size is not None]
    return bool(texts) and len(known) == len(texts) and sum(known) <= limit.prompt_tokens


def tokens(data: DataSet | None, limit: Thresholds) -> int | None:
    """Return the tokens of a data set: counted, else by its bytes, else by its documents; None where unknown."""
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
    """Format a number as ``5 billion``, ``300 million`` or ``12,000``."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.4g} {name}"
    return f"{number:,.0f}"
