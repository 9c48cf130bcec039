"""Merge evidence into facts: the strongest source of each field, the meaning of negations, the data on hand."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from align.advisor.form_fields import fields
from align.advisor.project_facts import STRENGTH, Conflict, Evidence, Facts, overlap
from align.schemas.project import DataKind, Project, Size, Tried

PROSE = ("text", "model")
"""Sources that read a description, which may state one fact several times."""
TUNED = ("sft", "dpo", "kto", "rlhf", "grpo", "rloo", "ppo", "post_training")
"""Methods that leave a model which answers instead of only continuing text."""


def gather(evidence: Iterable[Evidence], **known: Any) -> Facts:
    """Return the facts that evidence adds up to: per field the strongest source wins, among equals the first sure one.

    A negated fact is its opposite where the field has one: false, or none. Conflicts are kept. Methods that were tried
    or done stay known. ``known`` goes to ``Facts`` (languages, rejected).
    """
    given, conflicts = _without_misread(tuple(evidence))
    merged = (*given, *_implied(given))
    values: dict[str, Any] = {}
    rejected: list[str] = list(known.pop("rejected", ()))
    for name, claimed in _by_field(e for e in merged if not e.field.startswith(("data.", "tried."))):
        kind = _type(name)
        claims = [] if kind is None else _claims(claimed, kind)
        if kind is None:
            rejected.append(f"{name}: the form has no such field")
        elif claims:
            _put(values, name, _value(claims, kind))
            conflicts += _contradicted(name, claims)
    data, planned = _data(merged, conflicts)
    values["tried"] = _tried(merged)
    project, faults = _project(values | {"data": data})
    meant, _ = _project({"data": planned})
    rejected += faults
    return Facts(project, merged, tuple(conflicts), rejected=tuple(rejected), planned=tuple(meant.data or ()), **known)


def _without_misread(evidence: Sequence[Evidence]) -> tuple[list[Evidence], list[Conflict]]:
    """Return the evidence without what a model read otherwise in the same words as the rules, and these conflicts.

    Otherwise is: the number counts another thing, or the fact does not hold (it is planned, claimed by others, denied,
    over) and rules take it to hold, or the reverse. There the model's reading counts: it knows the whole text, rules
    see few words around. Of two values of one field in different words the rules' counts, as for all equal sources.
    """
    by_model = [e for e in evidence if e.source == "model" and e.span]
    kept, conflicts = list[Evidence](), list[Conflict]()
    for e in evidence:
        overlapping = [m for m in by_model if e.source == "text" and overlap(e.span, m.span)]
        agreed = any((m.field, m.value, m.status) == (e.field, e.value, e.status) for m in overlapping)
        other = next((m for m in overlapping if not agreed and _read_otherwise(e, m)), None)
        if other is None:
            kept.append(e)
        else:
            conflicts.append(Conflict(other.field, other, e))
    # A number of rows also shows that there are such data: that falls with it.
    fallen = {(c.dropped.field.rpartition(".")[0], c.dropped.span) for c in conflicts}
    return [e for e in kept if (e.field, e.span) not in fallen or e.source != "text"], conflicts


def _read_otherwise(by_rules: Evidence, by_model: Evidence) -> bool:
    if by_rules.field != by_model.field:
        known = fields().get(by_rules.field)
        number = by_model.value * 1e9 if by_model.field == "model.params_b" else by_model.value
        return known is not None and known.counts and type(number) in (int, float) and number == by_rules.value
    holds = by_rules.status == "asserted", by_model.status == "asserted"
    return by_rules.value == by_model.value and holds[0] != holds[1]


def without_guesses(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Return the evidence without guesses at words, where a form, a file or a measurement tells what there is.

    A guess is taken for the sake of the answer that the words as a whole call for; those were read without the rest.
    """
    stated = any(
        e.source in ("form", "file", "measured")
        and e.field.startswith(("data.", "behaviour.", "knowledge.", "reward."))
        for e in evidence
    )
    return tuple(e for e in evidence if not (stated and e.guess))


def _implied(evidence: Sequence[Evidence]) -> Iterator[Evidence]:
    """Yield facts that follow from things done or tried: "the pre-training is behind us", "an SFT model exists"."""
    for e in evidence:
        continued = e.field.startswith("data.corpus") or e.value == "continual_pretraining"
        if e.status == "done" and continued:
            yield replace(e, field="knowledge.pretraining_done", value=True, status="asserted", vague=False)
        elif e.status == "done" and e.field == "requested" and e.value in TUNED:
            yield replace(e, field="model.type", value="instruct", status="asserted")
        elif e.status == "tried" and e.field == "requested" and (how := _attempt(e.value)):
            yield replace(e, field=f"tried.{how}", value=True)


def _attempt(method: Any) -> str | None:
    trained = method in TUNED or method == "continual_pretraining"
    return method if method in ("prompting", "rag") else "fine_tuning" if trained else None


# Single fields


class Claim(NamedTuple):
    """Evidence with the value that follows from it."""

    value: Any
    evidence: Evidence


def _by_field(evidence: Iterable[Evidence]) -> Iterator[tuple[str, list[Evidence]]]:
    ordered = sorted(evidence, key=lambda e: e.field)  # stable
    return ((name, list(group)) for name, group in groupby(ordered, key=lambda e: e.field))


@functools.cache
def _type(path: str) -> Any:
    """Return the type of a field of the form, or None for an unknown field."""
    model: Any = Project
    for key in path.split("."):
        inner = [m for m in _members(model) if isinstance(m, type) and issubclass(m, BaseModel)]
        if not inner or key not in inner[0].model_fields:
            return None
        model = inner[0].model_fields[key].annotation
    return None if isinstance(model, type) and issubclass(model, BaseModel) else model


def _members(kind: Any) -> Iterator[Any]:
    """The plain types and literal values of a type."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _members(member)
    elif get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        yield kind


def _claims(statements: Sequence[Evidence], kind: Any) -> list[Claim]:
    """Return the claims about one field, the one that counts in front.

    Between yes and no of equal sources the more frequent counts, in a tie the denial: it names the thing as well.
    """
    claims = sorted(_claims_of(statements, set(map(str, _members(kind)))), key=_precedence)
    if not claims or not isinstance(claims[0].value, bool):
        return claims
    equal = [claim.value for claim in claims if _precedence(claim) == _precedence(claims[0])]
    majority = equal.count(True) > equal.count(False)
    return sorted(claims, key=lambda claim: (_precedence(claim), claim.value != majority))


def _claims_of(statements: Sequence[Evidence], members: set[str]) -> Iterator[Claim]:
    for e in statements:
        wanted = e.field == "requested" and e.status in ("planned", "attributed")
        if e.status == "asserted" or wanted or (e.field == "knowledge.pretraining_done" and e.status == "done"):
            yield Claim(e.value, e)
        elif e.status == "negated" and str(bool) in members:
            yield Claim(not e.value, e)
        elif e.status == "negated" and "none" in members and e.value != "none":
            yield Claim("none", e)


def _precedence(claim: Claim) -> tuple[Any, ...]:
    """Return a claim's sort key: the user's own before others', stronger source, present before absent, sure first."""
    e = claim.evidence
    absent = e.status == "negated" and claim.value == "none"  # one kind is denied, another may be there
    return e.status == "attributed", -STRENGTH[e.source], absent, e.vague


def _value(claims: list[Claim], kind: Any) -> Any:
    if get_origin(kind) is not list:
        return claims[0].value
    strongest = STRENGTH[claims[0].evidence.source]
    listed = [c.value for c in claims if STRENGTH[c.evidence.source] == strongest]
    return list(dict.fromkeys(v for value in listed for v in (value if isinstance(value, list) else [value])))


def _contradicted(name: str, claims: list[Claim]) -> Iterator[Conflict]:
    taken = claims[0]
    for claim in claims[1:]:
        e = claim.evidence
        within = e.vague and isinstance(taken.value, int | float) and (e.low or 0) <= taken.value <= (e.high or 0)
        absent = claim.value == "none" and e.status == "negated"
        within |= e.vague and isinstance(claim.value, str)  # a second hint is no contradiction
        if claim.value != taken.value and not (within or absent or e.status == "attributed"):
            if isinstance(taken.value, list) or isinstance(claim.value, list):
                continue
            yield Conflict(name, taken.evidence, e)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *above, key = path.split(".")
    functools.reduce(lambda level, name: level.setdefault(name, {}), above, values)[key] = value


# Data

Body = dict[str, Evidence]
"""Evidence about one data set, by key; "" for the evidence that it exists."""


def _data(evidence: Sequence[Evidence], conflicts: list[Conflict]) -> tuple[list[Any] | None, list[Any]]:
    """Return data sets on hand and planned, as plain values; None for the first where nothing is known of data.

    A property of data whose kind is not named ("gpt wrote the labels") goes to the first data set.
    """
    held: list[Any] = []
    planned: list[Any] = []
    loose: dict[str, Any] = {}
    denied = False
    for kind in get_args(DataKind):
        statements = [e for e in evidence if e.field == f"data.{kind}" or e.field.startswith(f"data.{kind}.")]
        behind = ("done",) if kind == "corpus" else ()  # what was trained on already is not there to train on
        here = [e for e in statements if e.status not in ("planned", "attributed", *behind)]
        found, absent = _bodies(kind, here, conflicts)
        stated = [body for body in found if body.keys() & {"", *Size.model_fields}]
        held += [_plain(kind, body) for body in stated]
        for body in found:
            loose |= {} if body in stated else _plain(kind, body)
        denied |= absent and kind != "eval_set"
        if not found and not absent:
            meant = _bodies(kind, [replace(e, status="asserted") for e in statements if e.status == "planned"], [])[0]
            planned += [_plain(kind, body) for body in meant]
    if held:
        held[0] = loose | held[0]
    return (held or ([] if denied else None)), planned


def _bodies(kind: str, statements: Sequence[Evidence], conflicts: list[Conflict]) -> tuple[list[Body], bool]:
    """Return the data sets of one kind by the strongest source, and whether it denies that there are any."""
    ordered = sorted(statements, key=lambda e: (-STRENGTH[e.source], e.source == "model"))
    by_source = [_split(kind, list(group)) for _, group in groupby(ordered, key=lambda e: e.source)]
    speaking = [spoken for spoken in by_source if spoken.bodies or spoken.absent]
    if not speaking:
        return [], False
    taken, *weaker = speaking
    for other in weaker:
        conflicts += _differences(taken, other)
        if len(taken.bodies) == len(other.bodies) == 1:
            taken.bodies[0].update({key: e for key, e in other.bodies[0].items() if key not in taken.bodies[0]})
    return taken.bodies, not taken.bodies


class SourceClaims(NamedTuple):
    """The claims of one source about one kind of data: its data sets, and the evidence that denies any."""

    bodies: list[Body]
    absent: Evidence | None


def _split(kind: str, statements: list[Evidence]) -> SourceClaims:
    """Group one source's evidence into data sets: a form lists them, prose may repeat one."""
    bodies: list[Body] = []
    absent = None
    for e in statements:
        key = e.field.removeprefix(f"data.{kind}").removeprefix(".")
        positive = e.status != "negated"
        if not key and positive != bool(e.value):
            absent = absent or e
        elif not key:
            if not bodies or e.source not in PROSE:
                bodies.append({"": e})
        elif positive or isinstance(e.value, bool):
            _add(bodies, key, e)
    empty = [body for body in bodies if "rows" in body and body["rows"].value == 0]
    absent = absent or (empty[0]["rows"] if empty else None)
    return SourceClaims([body for body in bodies if body not in empty], absent)


def _add(bodies: list[Body], key: str, e: Evidence) -> None:
    """Add evidence to the last data set; a second, different number for one size starts a new data set."""
    if not bodies or (key in Size.model_fields and key in bodies[-1]):
        if e.source in PROSE and any(key in body and body[key].value == e.value for body in bodies):
            return  # prose repeats the number
        bodies.append({})
    bodies[-1].setdefault(key, e)


def _differences(taken: SourceClaims, other: SourceClaims) -> Iterator[Conflict]:
    if not taken.bodies and other.bodies and taken.absent:
        first = next(iter(other.bodies[0].values()))
        yield Conflict(first.field, taken.absent, first)
    for key in Size.model_fields:
        ours, theirs = ([body[key] for body in spoken.bodies if key in body] for spoken in (taken, other))
        if ours and theirs and sum(e.value for e in ours) != sum(e.value for e in theirs):
            yield Conflict(theirs[0].field, ours[0], theirs[0])


def _plain(kind: str, body: Body) -> dict[str, Any]:
    values = {key: (not e.value if e.status == "negated" else e.value) for key, e in body.items() if key}
    size = {key: round(values.pop(key)) for key in Size.model_fields if key in values}
    return {"kind": kind, "size": size, **values}


def _tried(evidence: Sequence[Evidence]) -> list[str] | None:
    """Return the methods tried; an empty list where the evidence says none; None without evidence."""
    statuses = ("asserted", "tried", "done", "negated")
    statements = [e for e in evidence if e.field.startswith("tried.") and e.status in statuses]
    named = {e.field.removeprefix("tried.") for e in statements if e.status != "negated" and e.value}
    return [method for method in get_args(Tried) if method in named] if statements else None


def _project(values: dict[str, Any]) -> tuple[Project, list[str]]:
    """Return the form without the values that do not fit it, and those values in words."""
    faults: list[str] = []
    while True:
        try:
            return Project.model_validate(values), faults
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            faults.append(f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}")
            _drop(values, first["loc"])


def _drop(values: Any, path: Sequence[int | str]) -> None:
    """Delete the deepest existing part of a path."""
    level = values
    for name, below in pairwise((*path, "")):
        inner = level[name]
        if below not in inner if isinstance(inner, dict) else not isinstance(inner, list):
            del level[name]
            return
        level = inner
