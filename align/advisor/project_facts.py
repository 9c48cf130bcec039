"""What is known of a project, and whose words say so.

A *fact* is one field of the form (``align.schemas.project``) with a value. ``Evidence`` is one place that speaks of a
field: a line of the form, words of the description, a counted file, an answer in the interview, a measurement.
``Facts`` is all evidence and the form that follows from it: what rules see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from align.schemas.advice import HardwareFit, PlanStep, Primary
from align.schemas.project import DataKind, DataSet, Project, Tried

Status = Literal["asserted", "negated", "tried", "planned", "attributed", "done"]
"""How a thing is spoken of: it is so; it is not so; it was tried; it is to come; somebody else says or wants it; it is
behind us. Only what is asserted fires rules (a negated fact is the asserted opposite, where the field has one)."""

Source = Literal["form", "text", "model", "file", "answer", "measured"]
"""Where evidence comes from. Strength: measured > file > answer > form > text = model (a model only quotes text)."""

STRENGTH: dict[Source, int] = {"text": 0, "model": 0, "form": 1, "answer": 2, "file": 3, "measured": 4}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One place that speaks of one field.

    field: dotted path into the form: ``behaviour.rules_count``, ``knowledge.changes``, ``requested``; of data by kind:
        ``data.sft_pairs`` (that there is such data; value True or False), ``data.sft_pairs.rows``, ``.tokens``,
        ``.docs``, ``.bytes``, ``.pii``, ``.labelled_by``, ``.overlaps_evals`` ...; of tried methods ``tried.rag``.
    value: of the field's type; numbers normalised (tokens, rows, 10^9 parameters, GB, shares 0 to 1).
    quote, span: the words, and where they stand in ``source``'s text (half-open, in characters); "" and None where
        nothing was written.
    vague: whether the value is a rough guess at words ("several thousand"); then ``low`` and ``high`` bound it.
    place: ``brief.yaml line 4`` or a file's name, where there is one.
    """

    field: str
    value: Any
    status: Status = "asserted"
    quote: str = ""
    span: tuple[int, int] | None = None
    source: Source = "form"
    vague: bool = False
    low: float | None = None
    high: float | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two places that do not agree on a field; the stronger one counts."""

    field: str
    taken: Evidence
    dropped: Evidence


@dataclass(frozen=True, slots=True)
class Plan:
    """What is advised, as rules see it when they are asked for dangers and questions.

    hardware: how it lies on what there is; None before that is known.
    """

    primary: Primary
    steps: tuple[PlanStep, ...] = ()
    companions: tuple[str, ...] = ()
    hardware: HardwareFit | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The steps by name, in order."""
        return tuple(step.stage for step in self.steps)


@dataclass(frozen=True, slots=True)
class Facts:
    """The form as far as it is known, and all evidence.

    planned: data that is not there yet and is meant to be.
    plan: what was decided; None while it is being decided.
    languages: of the description (``en``, ``de``, ...), the unsupported ones with ``?`` behind (``xx?``).
    rejected: what a model extracted and the text does not bear out, in words.
    """

    project: Project
    evidence: tuple[Evidence, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    languages: tuple[str, ...] = ()
    rejected: tuple[str, ...] = field(default=())
    planned: tuple[DataSet, ...] = ()
    plan: Plan | None = None

    def all(self, name: str, *statuses: Status) -> list[Evidence]:
        """Every place that speaks of a field (or of any below it), the strongest and surest first.

        Of the statuses named, or all.
        """
        found = [
            e
            for e in self.evidence
            if (e.field == name or e.field.startswith(name + ".")) and (not statuses or e.status in statuses)
        ]
        return sorted(found, key=lambda e: (-STRENGTH[e.source], e.vague))  # stable: the first mention first

    def why(self, name: str) -> Evidence | None:
        """The place that the form's value of a field rests on."""
        found = [e for e in self.all(name, "asserted") if e.field == name]
        return found[0] if found else None

    def data(self, kind: DataKind) -> DataSet | None:
        """What is on hand of one kind, several bodies of it added up; None where nothing is."""
        return _sum([d for d in self.project.data or () if d.kind == kind])

    def coming(self, kind: DataKind) -> DataSet | None:
        """What is on hand of one kind or, where nothing is, what is planned."""
        return self.data(kind) or _sum([d for d in self.planned if d.kind == kind])

    @property
    def kinds(self) -> set[DataKind]:
        """The kinds of data on hand; a body that is said to be of no size is not there."""
        return {d.kind for d in self.project.data or () if any(v != 0 for v in _sizes(d)) or not _sizes(d)}


def _sizes(data: DataSet) -> list[int]:
    size = data.size
    return [v for v in (size.rows, size.tokens, size.docs, size.bytes) if v is not None]


def _sum(held: Sequence[DataSet]) -> DataSet | None:
    if not held:
        return None
    sizes = {
        key: sum(values) if (values := [v for d in held if (v := getattr(d.size, key)) is not None]) else None
        for key in type(held[0].size).model_fields
    }
    return held[0].model_copy(update={"size": held[0].size.model_copy(update=sizes)})


def from_form(project: Project, places: dict[str, str] | None = None, source: Source = "form") -> list[Evidence]:
    """Evidence for everything that a form says; ``places`` maps dotted paths to lines of its file.

    The quote is the form's own words: ``rules_count: 27``. What was measured speaks through ``measured.added``.
    """
    values = project.model_dump(exclude={"description", "data", "tried", "measured"})
    untried = get_args(Tried) if project.tried == [] else ()
    return [
        *_walk(values, "", places or {}, source),
        *_of_data(project.data, places or {}, source),
        *(Evidence(f"tried.{t}", True, "tried", f"tried: {t}", source=source) for t in project.tried or ()),
        *(Evidence(f"tried.{t}", True, "negated", "tried: []", source=source) for t in untried),
    ]


def _walk(values: dict[str, Any], above: str, places: dict[str, str], source: Source) -> Iterator[Evidence]:
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            yield from _walk(value, f"{path}.", places, source)
        elif value is not None and value != [] and key not in ("note", "description"):
            yield Evidence(path, value, quote=f"{key}: {_yaml(value)}", source=source, place=places.get(path, ""))


def _of_data(held: Sequence[DataSet] | None, places: dict[str, str], source: Source) -> Iterator[Evidence]:
    if held == []:
        for kind in get_args(DataKind):
            yield Evidence(f"data.{kind}", False, "asserted", "data: []", source=source, place=places.get("data", ""))
    for i, data in enumerate(held or ()):
        where = places.get(f"data[{i}]", "")
        yield Evidence(f"data.{data.kind}", True, quote=f"kind: {data.kind}", source=source, place=where)
        plain = data.model_dump(exclude={"kind", "size", "note"})
        sizes = data.size.model_dump()
        for key, value in {**sizes, **plain}.items():
            if value is not None:
                place = places.get(f"data[{i}].{'size.' if key in sizes else ''}{key}", where)
                told = f"{key}: {_yaml(value)}"
                yield Evidence(f"data.{data.kind}.{key}", value, quote=told, source=source, place=place)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)
