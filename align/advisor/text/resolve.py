"""Resolve the evidence of single sentences with the whole text: hints become facts, specific ones come first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from align.advisor.project_facts import Evidence, overlap
from align.advisor.thresholds import shipped
from align.schemas.project import Knowledge

RHYTHMS = get_args(get_args(Knowledge.model_fields["changes"].annotation)[0])[::-1]
"""Values of ``knowledge.changes``, the fastest first."""
CORPUS = 1e8
"""Tokens from which on a text is a corpus, so that its documents are not for retrieval."""
TASKS = (
    "sql", "function_calling", "code", "reasoning", "extraction", "classification", "translation", "summarisation",
    "domain_model", "qa", "generation", "chat",
)  # fmt: skip
"""Types of task, the most specific first."""
TRAINED_ON = ("sft_pairs", "preference_pairs", "unpaired_feedback", "prompts", "corpus")


BODY = 200
"""Rows from which on there is something to train on, so that words of duty need not mean a prompt's rules."""
ACTS = ("behaviour.", "reward.", "knowledge.source")
"""Fields of the wanted behaviour, or of the data and rewards to learn it from."""
FORMAT_FIELDS = 8
"""A format with no more fields than this is one rule."""
_FIELD = re.compile(r"field|feld|campo|字段", re.IGNORECASE)


def resolve_hints(found: Iterable[Evidence]) -> list[Evidence]:
    """Return evidence in the order of the text, hints (``_field``) turned into facts."""
    evidence = list(found)
    facts = [e for e in evidence if not e.field.startswith("_")]
    hints = [e for e in evidence if e.field.startswith("_")]
    facts = list(_corpus(_formats(_rhythms(facts))))
    hinted = frozenset(hint.field for hint in hints)
    facts += [fact for hint in hints for fact in _of_hint(hint, facts, hinted)]
    facts += _duties(hints, facts)
    facts += _asked(hints, facts)
    return sorted(facts, key=_order)


def _order(e: Evidence) -> tuple[int, int]:
    """Return the sort key: task types by specificity, everything else by place (each field is read by itself)."""
    rank = TASKS.index(e.value) if e.field == "task.type" and e.value in TASKS else 0
    return rank, e.span[0] if e.span else 0


def _rhythms(facts: list[Evidence]) -> list[Evidence]:
    """Keep the longest of overlapping phrases of change, of equally long ones the faster: `revised every few weeks`."""
    phrases = [e for e in facts if e.field == "knowledge.changes" and e.span]
    beaten = {
        id(e) for e in phrases for other in phrases if overlap(e.span, other.span) and _weight(other) > _weight(e)
    }
    return [e for e in facts if id(e) not in beaten]


def _weight(e: Evidence) -> tuple[int, int]:
    return len(e.quote), -RHYTHMS.index(e.value)


def _formats(facts: list[Evidence]) -> list[Evidence]:
    """Count the few fields of a format as one rule: they are kept together by a schema."""
    formatted = any(e.field == "behaviour.output_format" and e.status == "asserted" for e in facts)
    return [
        replace(e, value=1, vague=True, low=1, high=float(e.value))
        if formatted and e.field == "behaviour.rules_count" and e.value <= FORMAT_FIELDS and _FIELD.search(e.quote)
        else e
        for e in facts
    ]


def _corpus(facts: list[Evidence]) -> Iterator[Evidence]:
    """Move documents that make up a corpus to train on to the corpus: they are not for retrieval."""
    large = any(e.field == "data.corpus.tokens" and e.value >= CORPUS and e.status == "asserted" for e in facts)
    large = large and not any(e.field == "knowledge.needs_citations" and e.status == "asserted" for e in facts)
    for e in facts:
        if large and (e.field == "data.documents" or e.field.startswith("data.documents.")):
            yield replace(e, field=e.field.replace("documents", "corpus"))
        else:
            yield e


def _of_hint(hint: Evidence, facts: list[Evidence], hinted: frozenset[str]) -> Iterator[Evidence]:
    name = hint.field[1:]
    here = hint.status not in ("negated",)
    if name == "own_documents" and here:
        if not any(e.field == "data.corpus.tokens" and e.value >= CORPUS for e in facts):
            yield replace(hint, field="data.documents", status="asserted")
        yield replace(hint, field="knowledge.source", value="proprietary", status="asserted")
        yield replace(hint, field="task.type", value="qa", status="asserted")
    elif name == "rules.few" and here and not (_stated(facts, "behaviour.rules_count") or _sized(facts)):
        yield replace(hint, field="behaviour.rules_count", value=1, status="asserted", vague=True, low=1, high=5)
    elif name == "reward.none" and not here and not _stated(facts, "reward.kind"):
        yield replace(hint, field="reward.kind", value="none", status="asserted")
    elif name == "goal" and here and "_goal.none" not in hinted:
        yield replace(hint, field="task.description", value=hint.quote, status="asserted", vague=True)
    elif name == "best_of_n" and here:
        yield replace(hint, field="requested", value="best_of_n")
    elif name == "judge" and here:
        yield replace(hint, field="evals.judge", value="model", status="asserted")
    elif name == "labelled_by" and here:
        yield replace(hint, field=f"data.{_nearest(hint, facts)}.labelled_by", value="model", status="asserted")
    elif name == "overlap" and here:
        yield replace(hint, field=f"data.{_nearest(hint, facts)}.overlaps_evals", value=True, status="asserted")
    elif name == "no_data" and not any(e.field.startswith("data.") and e.value is True for e in facts):
        yield replace(hint, field="data.sft_pairs", value=False)


def _duties(hints: list[Evidence], facts: list[Evidence]) -> list[Evidence]:
    """Count words of duty ("must") as rules, where nothing else gives their number."""
    duties = [hint for hint in hints if hint.field == "_duty"]
    counted = any(e.field == "behaviour.rules_count" and not e.vague for e in facts)
    if not duties or counted or _sized(facts):
        return []
    count = min(len(duties), shipped().few_rules)
    return [
        replace(duties[0], field="behaviour.rules_count", value=count, status="asserted", vague=True, low=1, high=10)
    ]


def _sized(facts: list[Evidence]) -> bool:
    """Return whether there is a data set to train on; held-out rows are none."""
    return any(
        e.field.startswith("data.")
        and e.field.split(".")[1] in TRAINED_ON
        and e.field.endswith((".rows", ".tokens"))
        and e.status == "asserted"
        and e.value >= BODY
        for e in facts
    )


def _asked(hints: list[Evidence], facts: list[Evidence]) -> list[Evidence]:
    """Infer missing knowledge where people ask questions and neither behaviour nor training data are mentioned."""
    asked = [hint for hint in hints if hint.field == "_asked" and hint.status == "asserted"]
    other = any(e.field.startswith(ACTS) and e.status == "asserted" and e.value is not False for e in facts)
    held = any(e.field in (f"data.{kind}" for kind in TRAINED_ON) and e.value is True for e in facts)
    goal = any(e.field == "task.description" for e in facts)
    if not asked or not goal or other or held:
        return []
    hint = replace(asked[0], status="asserted", vague=True)
    return [
        replace(hint, field="knowledge.source", value="proprietary"),
        replace(hint, field="task.type", value="qa"),
    ]


def _stated(facts: list[Evidence], field: str) -> bool:
    return any(e.field == field and e.status == "asserted" for e in facts)


def _nearest(hint: Evidence, facts: list[Evidence]) -> str:
    """Return the kind of training data mentioned nearest to a hint."""
    places = [
        (abs(e.span[0] - hint.span[0]), kind)
        for e in facts
        for kind in TRAINED_ON
        if e.field == f"data.{kind}" and e.value is True and e.span and hint.span
    ]
    return min(places)[1] if places else "sft_pairs"
