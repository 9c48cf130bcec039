"""Facts of a project, and the evidence for each.

A *fact* is one field of the form (``align.schemas.project``) with a value. ``Evidence`` is one statement about a
field: a line of the form, words of the description, a counted file, an answer in the interview, a measurement.
``Facts`` is all evidence and the form that follows from it: the input of rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from align.schemas.advice import HardwareFit, OtherReading, PlanStep, Primary
from align.schemas.project import DataKind, DataSet, Project, Tried

Status = Literal["asserted", "negated", "tried", "planned", "attributed", "done"]
"""The standing of a statement: true; not true; tried before; planned; claimed or wanted by somebody else; finished.
Only asserted facts fire rules (a negated fact is the asserted opposite, where the field has one)."""

Source = Literal["form", "text", "model", "file", "answer", "measured"]
"""The source of evidence. Strength: measured > file > answer > form > text = model (a model only quotes text)."""

LIKELY = 0.5
"""Probability of a statement below which it is a guess."""
STRENGTH: dict[Source, int] = {"text": 0, "model": 0, "form": 1, "answer": 2, "file": 3, "measured": 4}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One statement about one field.

    field: dotted path into the form: ``behaviour.rules_count``, ``knowledge.changes``, ``requested``; of data by kind:
        ``data.sft_pairs`` (that there is such data; value True or False), ``data.sft_pairs.rows``, ``.tokens``,
        ``.docs``, ``.bytes``, ``.pii``, ``.labelled_by``, ``.overlaps_evals`` ...; of tried methods ``tried.rag``.
    value: of the field's type; numbers normalised (tokens, rows, 10^9 parameters, GB, shares 0 to 1).
    quote, span: the words, and their place in ``source``'s text (half-open, in characters); "" and None where
        there are no words.
    vague: the value is a rough reading of words ("several thousand"); then ``low`` and ``high`` bound it.
    place: ``brief.yaml line 4`` or a file's name, where there is one.
    probability: of a learned reader, that the statement is right, 0 to 1; None where the source gives none.
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
    probability: float | None = None

    @property
    def guess(self) -> bool:
        """True where the words alone do not bear the statement out: the text as a whole calls for it."""
        return self.probability is not None and self.probability < LIKELY


def overlap(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    """Return whether two half-open spans share a character; one that is None shares none."""
    return bool(one and other and one[0] < other[1] and other[0] < one[1])


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two statements that contradict each other on a field; the stronger one counts."""

    field: str
    taken: Evidence
    dropped: Evidence


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading of free words as a whole.

    primary: the answer that they lead to by themselves. probability: of each answer, calibrated. others: readings that
    lead to another answer, the likeliest first. doubtful: stages of the plan of which the text as a whole is not sure.
    weights: the hash of what the learned reader learned.
    """

    primary: Primary
    probability: Mapping[Primary, float]
    others: tuple[OtherReading, ...] = ()
    doubtful: frozenset[str] = frozenset()
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan advised, as rules see it in their second run, for warnings and questions.

    hardware: how it fits the hardware on hand; None before that is known.
    """

    primary: Primary
    steps: tuple[PlanStep, ...] = ()
    companions: tuple[str, ...] = ()
    hardware: HardwareFit | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The steps by name, in order."""
        return tuple(step.stage for step in self.steps)


@dataclass(frozen=True)
class Facts:
    """The form as far as it is known, and all evidence.

    planned: data that do not exist yet and are planned.
    plan: the decision; None in the first run of the rules.
    languages: of the description (``en``, ``de``, ...), the unsupported ones with ``?`` behind (``xx?``).
    rejected: facts that a model extracted and the text does not confirm, in words.
    reading: how free words were read; None without any.
    """

    project: Project
    evidence: tuple[Evidence, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    languages: tuple[str, ...] = ()
    rejected: tuple[str, ...] = field(default=())
    planned: tuple[DataSet, ...] = ()
    plan: Plan | None = None
    reading: Reading | None = None

    def all(self, name: str, *statuses: Status) -> list[Evidence]:
        """Return the evidence for a field and the fields below it, the strongest and surest first.

        statuses: those to include; none: all.
        """
        found = [
            e
            for e in self.evidence
            if (e.field == name or e.field.startswith(name + ".")) and (not statuses or e.status in statuses)
        ]
        return sorted(found, key=lambda e: (-STRENGTH[e.source], e.vague))  # stable: the first mention first

    def why(self, name: str) -> Evidence | None:
        """Return the evidence that the form's value of a field rests on."""
        found = [e for e in self.all(name, "asserted") if e.field == name]
        return found[0] if found else None

    def data(self, kind: DataKind) -> DataSet | None:
        """Return the data on hand of one kind, several data sets added up; None where there are none."""
        return self._on_hand.get(kind)

    def coming(self, kind: DataKind) -> DataSet | None:
        """Return the data on hand of one kind or, where there are none, the planned data."""
        return self.data(kind) or _sum([d for d in self.planned if d.kind == kind])

    @cached_property
    def _on_hand(self) -> dict[DataKind, DataSet | None]:
        """The data on hand by kind; rules ask for the same kinds over and over."""
        held = self.project.data or ()
        return {kind: _sum([d for d in held if d.kind == kind]) for kind in {d.kind for d in held}}

    @cached_property
    def kinds(self) -> frozenset[DataKind]:
        """The kinds of data on hand; a data set whose sizes are all 0 does not count."""
        return frozenset(d.kind for d in self.project.data or () if any(_sizes(d)) or not _sizes(d))


def _sizes(data: DataSet) -> list[int]:
    size = data.size
    return [v for v in (size.rows, size.tokens, size.docs, size.bytes) if v is not None]


def _sum(held: Sequence[DataSet]) -> DataSet | None:
    if len(held) < 2:
        return held[0] if held else None
    sizes: dict[str, int | None] = {}
    for key in type(held[0].size).model_fields:
        values = [getattr(d.size, key) for d in held]
        known = [value for value in values if value is not None]
        sizes[key] = sum(known) if known else None  # unknown, not 0
    return held[0].model_copy(update={"size": held[0].size.model_copy(update=sizes)})


def from_form(project: Project, places: dict[str, str] | None = None, source: Source = "form") -> list[Evidence]:
    """Return evidence for every value of a form; ``places`` maps dotted paths to lines of its file.

    The quote is the form's own line: ``rules_count: 27``. Measurements become evidence by ``add_measurements``.
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
                line = f"{key}: {_yaml(value)}"
                yield Evidence(f"data.{data.kind}.{key}", value, quote=line, source=source, place=place)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)
