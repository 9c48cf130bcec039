"""The facts of a project as they were understood: in words, as settings that correct them, with their quotes.

Facts that count come first in each topic; then those that were read and do not count, with the reason: planned, tried,
or claimed by somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from align.advisor.fact_words import DATA, clause, quote_of
from align.advisor.form_fields import fields, settable, value_at
from align.advisor.project_facts import Evidence, Facts
from align.schemas.advice import Quote, UnderstoodFact
from align.schemas.project import DataKind, DataSet, Size, Tried

TOPICS = ("goal", "behaviour", "knowledge", "data", "scorer", "model", "hardware", "constraints", "evals")
_TOPIC_OF = {
    "task": "goal",
    "requested": "goal",
    "behaviour.target_capability": "goal",
    "tried": "behaviour",
    "reward": "scorer",
    "training": "constraints",
}
"""The topic of a field, or of all fields that begin so; else it is the field's first part."""
_STANDING = {
    "planned": "planned",
    "attributed": "others claim it; it does not count",
    "done": "done already",
    "tried": "tried before",
    "negated": "not wanted",
}


def understood(facts: Facts) -> list[UnderstoodFact]:
    """Return all facts by topic, in the order of ``TOPICS``."""
    found = [*_counted(facts), *_data(facts), *_tried(facts), *_uncounted(facts)]
    return sorted(found, key=lambda fact: TOPICS.index(fact.topic))  # stable


def _fact(field: str, setting: str, text: str, evidence: list[Evidence]) -> UnderstoodFact:
    first = field.partition(".")[0]
    topic = _TOPIC_OF.get(field) or _TOPIC_OF.get(first, first)
    quotes: dict[object, Quote] = {}
    for e in evidence:
        if e.quote:
            quotes.setdefault((e.quote, e.span), quote_of(e))
    guess = bool(evidence) and all(e.guess for e in evidence)
    return UnderstoodFact.model_validate(
        {"topic": topic, "setting": setting, "text": text, "quotes": list(quotes.values()), "guess": guess}
    )


def written(value: Any) -> str:
    """Return a value as ``--set`` takes it: ``true``, ``[de, en]``, ``27``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# Single fields


def _counted(facts: Facts) -> Iterator[UnderstoodFact]:
    """Yield the fields of the form that have a value; data and methods tried aside."""
    for field in settable():
        if field in ("data", "tried"):
            continue
        value = value_at(facts.project, field)
        if value is None or value == []:
            continue
        evidence = _supporting(facts, field, value)
        text = clause(field, value, _rough(evidence))
        if field == "requested" and evidence and all(e.status == "attributed" for e in evidence):
            text += " by others"
        yield _fact(field, f"{field}={written(value)}", text, evidence)


def _supporting(facts: Facts, field: str, value: Any) -> list[Evidence]:
    """Return the evidence that bears a field's value out, the strongest first."""
    return [e for e in facts.all(field) if e.field == field and _means(e, value)]


def _rough(evidence: list[Evidence]) -> bool:
    """Return whether a number is a rough reading of words by its strongest evidence."""
    first = evidence[0] if evidence else None
    return first is not None and first.vague and isinstance(first.value, int | float) and first.low != first.high


def _means(e: Evidence, value: Any) -> bool:
    if e.status == "negated":
        return value == "none" if isinstance(value, str) else isinstance(value, bool) and e.value is (not value)
    if isinstance(value, list):
        return set(e.value if isinstance(e.value, list) else [e.value]) <= set(value)
    return bool(e.value == value)


# Data


def _data(facts: Facts) -> Iterator[UnderstoodFact]:
    """Yield the data sets on hand, numbered as the settings number them; then what is planned, and what is denied."""
    for index, held in enumerate(facts.project.data or ()):
        yield from _data_set(facts, index, held)
    for kind in get_args(DataKind):
        evidence = facts.all(f"data.{kind}", "planned")
        if evidence and kind not in facts.kinds:
            sizes = {e.field: e for e in reversed(evidence) if e.field.rpartition(".")[2] in Size.model_fields}
            amounts = [clause(field, e.value, _rough([e])) for field, e in sorted(sizes.items())]
            text = ", ".join([f"{DATA[kind]} {'is' if kind == 'corpus' else 'are'} planned", *amounts])
            yield _fact("data", f"data.{kind}=planned", text, evidence)
    absent = {kind: found for kind in get_args(DataKind) if (found := _denials(facts, kind))}
    if len(absent) == len(get_args(DataKind)):
        yield _fact("data", "data=[]", "there are no data", absent["corpus"])
        return
    for kind, evidence in absent.items():
        yield _fact("data", f"data.{kind}=none", clause(f"data.{kind}", False), evidence)


def _data_set(facts: Facts, index: int, held: DataSet) -> Iterator[UnderstoodFact]:
    name = f"data.{held.kind}"
    present = [e for e in facts.all(name) if e.status not in ("planned", "attributed", "negated")]
    properties = held.model_dump(exclude={"kind", "size"}, exclude_none=True)
    sizes = held.size.model_dump(exclude_none=True)
    stated = [e for e in present if e.field == name and e.value]
    sized = [e for e in present if sizes.get(e.field.rpartition(".")[2]) == e.value]
    alone = sum(other.kind == held.kind for other in facts.project.data or ()) == 1
    # Of several sets of a kind only the sizes show which words are about this one.
    evidence = stated or sized if alone else sized or stated
    yield _fact("data", f"data.{index}.kind={held.kind}", DATA[held.kind], evidence)
    for key, value in {**sizes, **properties}.items():
        # What is known of data whose kind is not named was given to the first set.
        evidence = _supporting(facts, f"{name}.{key}", value) or [
            e for e in facts.all("data") if e.field.rpartition(".")[2] == key and _means(e, value)
        ]
        text = clause(f"{name}.{key}", value, _rough(evidence))
        yield _fact("data", f"data.{index}.{key}={written(value)}", text, evidence)


def _denials(facts: Facts, kind: DataKind) -> list[Evidence]:
    """Return the evidence that there are no data of a kind: "no pairs" negates True, a form's 0 rows assert it."""
    if kind in facts.kinds:
        return []
    stated = [e for e in facts.all(f"data.{kind}", "asserted", "negated") if e.field.count(".") == 1]
    none = [e for e in facts.all(f"data.{kind}.rows", "asserted") if e.value == 0]
    return [e for e in stated if (e.status == "negated") == bool(e.value)] + none


# Methods tried, and what does not count


def _tried(facts: Facts) -> Iterator[UnderstoodFact]:
    held = facts.project.tried
    if held is None:
        return
    refused = {t: [e for e in facts.all(f"tried.{t}") if e.status == "negated"] for t in get_args(Tried)}
    if not held and all(refused.values()):
        yield _fact("tried", "tried=[]", "nothing was tried before", refused["prompting"])
        return
    for method in get_args(Tried):
        evidence = [e for e in facts.all(f"tried.{method}") if e.status != "negated"]
        if method in held:
            yield _fact("tried", f"tried.{method}=true", clause(f"tried.{method}", True), evidence)
        elif refused[method]:
            yield _fact("tried", f"tried.{method}=false", clause(f"tried.{method}", False), refused[method])


def _uncounted(facts: Facts) -> Iterator[UnderstoodFact]:
    """Yield what was read of fields and does not count, once for each field or kind of data."""
    seen = {fact.setting.partition("=")[0] for fact in _counted(facts)}
    for e in facts.evidence:
        kind = e.field.split(".")[1] if e.field.startswith("data.") else ""
        name = f"data.{kind}" if kind else e.field
        shown = name in seen or kind in facts.kinds or (kind and e.status == "planned")
        idle = e.status == "asserted" or (e.status == "negated" and e.field != "requested")
        if shown or idle or e.field not in fields() or e.field.startswith("tried."):
            continue
        seen.add(name)
        text = f"{clause(e.field, e.value)} ({_STANDING[e.status]})"
        if e.field != name:
            text = f"{clause(name, True)}, {text}"
        yield _fact(name, f"{e.field}={written(e.value)}", text, [e])
