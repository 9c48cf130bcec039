"""Facts as settings, ``PATH=VALUE``: laid over the facts (``--what-if``) or correcting what was read (``--set``).

    behaviour.rules_count=25        a field of the form; null: not known
    data.0.kind=preference_pairs    data sets are numbered as the form and "What was understood" number them
    data.0.rows=50000               the same as data.0.size.rows
    data.sft_pairs.rows=200         the first data set of a kind; a new one where there is none
    data.sft_pairs=none             or some, or planned
    data=[]                         there are no data
    tried.prompting=true

A value may be the beginning of one: ``preference`` for ``preference_pairs``. Numbers may be written 14k, 2.5b, 95%.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from align.advisor.data_budget import format_count
from align.advisor.fact_words import DATA, clause, source_of
from align.advisor.form_fields import FieldOf, data_fields, settable
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.project import DATA_KINDS, DataKind, DataSet, Project, Size, Tried

PLACE = "--set"
"""The source of a corrected fact, as quotes name it."""


@dataclass
class Changes:
    """The form with settings applied, and what they say beyond it.

    touched: the fields of evidence that they change, each with all below it. restated: kinds of data of which a set was
    given another kind, so that even a counted file is no longer evidence for them. stated: kinds of data denied or
    planned, and methods not tried, which a form cannot hold. written: the setting behind a value, by field and value.
    """

    project: Project
    touched: set[str] = field(default_factory=set)
    restated: set[str] = field(default_factory=set)
    stated: list[Evidence] = field(default_factory=list)
    written: dict[tuple[str, str], str] = field(default_factory=dict)

    def touch(self, e: Evidence) -> bool:
        """Return whether evidence is about a field that the settings change."""
        return _within(e.field, self.touched)


def _within(name: str, fields: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in fields)


class SettingFault(ValueError):
    """A setting that does not fit. args: what is wrong, and the fix."""


def change(project: Project, settings: Sequence[str]) -> Changes:
    """Return the form with the settings applied, in their order; data sets keep their numbers until the last one.

    Raises AlignError that names every setting whose path or value is not valid.
    """
    draft = _Draft(project)
    problems: list[Problem] = []
    for setting in settings:
        path, equals, value = setting.partition("=")
        try:
            if not equals or not path.strip():
                raise SettingFault("is no setting", "write behaviour.rules_count=25")
            draft.lay(path.strip(), value.strip())
        except SettingFault as fault:
            problems.append(Problem(setting, *fault.args))
    if problems:
        raise AlignError.gather(problems)
    return draft.finish()


def what_if(project: Project, settings: Sequence[str]) -> Project:
    """Return the form with the settings applied. Raises as ``change`` does."""
    return change(project, settings).project


def suppose(facts: Facts, settings: Sequence[str]) -> Facts:
    """Return the facts with the settings applied; evidence of the values that they replace is removed.

    Raises as ``change`` does.
    """
    changes = change(facts.project, settings)
    kept = tuple(e for e in facts.evidence if not changes.touch(e))
    new = tuple(e for e in from_form(changes.project, source="answer") if changes.touch(e))
    planned = tuple(each for each in facts.planned if not _within(f"data.{each.kind}", changes.touched))
    coming = (e.field.removeprefix("data.") for e in changes.stated if e.status == "planned")
    planned += tuple(DataSet.model_validate({"kind": kind}) for kind in coming)
    return replace(facts, project=changes.project, evidence=(*changes.stated, *new, *kept), planned=planned, plan=None)


def correct(evidence: Sequence[Evidence], settings: Sequence[str]) -> list[Evidence]:
    """Return the evidence with the facts corrected: a setting is as strong as an answer, and replaces what it corrects.

    So nothing that a corrected fact rested on is left to contradict it; only counted files and measurements stay, which
    are stronger. Data that keep their values keep their words. Raises as ``change`` does.
    """
    changes = change(gather(evidence).project, settings)
    gone = [e for e in evidence if _replaced(e, changes)]
    kept = [e for e in evidence if e not in gone and not _follows_from(e, gone)]
    stated = {e.field for e in changes.stated}
    new = [e for e in from_form(changes.project, source="answer") if changes.touch(e) and e.field not in stated]
    return [*changes.stated, *(_quoted(e, changes, evidence) for e in new), *kept]


def _replaced(e: Evidence, changes: Changes) -> bool:
    if e.source in ("file", "measured"):
        return _within(e.field, changes.restated)
    return any(map(changes.touch, gather([e]).evidence))  # with what follows from it: rag, tried, of a request for it


def _follows_from(e: Evidence, gone: Sequence[Evidence]) -> bool:
    """Return whether evidence was read out of a name that is replaced: the memory of "an RTX 4090"."""
    section = e.field.partition(".")[0]
    if section not in ("hardware", "model") or e.span is None:
        return False
    names = [old for old in gone if old.field in ("hardware.gpu", "model.name") and old.field.startswith(section)]
    return any(old.span and old.span[0] <= e.span[0] and e.span[1] <= old.span[1] for old in names)


def _quoted(new: Evidence, changes: Changes, before: Sequence[Evidence]) -> Evidence:
    """Return evidence with the setting that it comes from; or where its value is as before, with its words."""
    kind = new.field.removeprefix("data.")
    stands = ("data.kind", kind) if kind in DATA_KINDS else (_key(new.field), str(new.value))
    setting = changes.written.get(stands)
    if setting is not None:
        return replace(new, quote=setting, place=PLACE)
    for old in before:
        if old.quote and old.value == new.value and _key(old.field) == _key(new.field):
            return replace(old, field=new.field, status=new.status, source="answer", place=source_of(old))
    for old in before:
        if old.quote and old.field.startswith(f"{new.field}."):  # "14,000 pairs": the number shows that there are any
            return replace(new, quote=old.quote, span=old.span, place=source_of(old))
    return replace(new, place=PLACE)


def _key(name: str) -> str:
    """Return a field with the kind of data left out: ``data.rows``."""
    first, *rest = name.split(".")
    return f"data.{rest[-1]}" if first == "data" and len(rest) > 1 else name


class _Draft:
    """The values of a form while settings are laid over them."""

    def __init__(self, project: Project) -> None:
        self.values: dict[str, Any] = project.model_dump()
        self.changes = Changes(project)
        self.gone: set[str] = set()

    def finish(self) -> Changes:
        """Return the changes. Raises AlignError where the values do not fit together: a data set without a kind."""
        if self.gone:
            left = [body for body in self.values["data"] or [] if body["kind"] not in self.gone]
            denied = any(e.status == "asserted" for e in self.changes.stated)
            self.values["data"] = left or ([] if denied else None)  # what is planned alone leaves the rest unknown
        try:
            self.changes.project = Project.model_validate(self.values)
        except ValidationError as error:
            raise AlignError.gather(
                Problem(".".join(map(str, e["loc"])), e["msg"][:1].lower() + e["msg"][1:])
                for e in error.errors(include_url=False)
            ) from None
        return self.changes

    def lay(self, path: str, text: str) -> None:
        """Apply one setting. Raises SettingFault."""
        first, *rest = path.split(".")
        if not text:
            raise SettingFault("has no value", "write null for unknown")
        plain = _plain(text)
        text = plain if isinstance(plain, str) else text
        if first == "data" and rest:
            self._data(rest, text, path)
        elif first == "tried" and rest:
            self._tried(rest, text)
        else:
            of = _field(path)
            value = parse(of, text) if path != "data" else _no_data(plain)
            *above, last = path.split(".")
            level = self.values
            for key in above:
                level = level[key]
            level[last] = value
            self.changes.touched.add(path)
            self.changes.written[path, str(value)] = f"{path}={text}"

    def _tried(self, rest: list[str], text: str) -> None:
        method = one_of(rest[0], get_args(Tried))
        if len(rest) > 1:
            raise SettingFault(f"{method} has no fields", f"write tried.{method}=true")
        name = f"tried.{method}"
        value = parse(FieldOf(name, bool, ""), text)
        others = [each for each in self.values["tried"] or [] if each != method]
        known = self.values["tried"] is not None or value is not None
        self.values["tried"] = [*others, *([method] if value else [])] if known else None
        self.changes.touched.add(name)
        self.changes.written[name, "True"] = f"{name}={text}"
        if value is False:
            self.changes.stated.append(
                Evidence(name, True, "negated", quote=f"{name}={text}", source="answer", place=PLACE)
            )

    def _data(self, rest: list[str], text: str, path: str) -> None:
        place, *keys = rest
        if place.isdecimal():
            if not keys:
                raise SettingFault("names no field of it", "write data.0.rows=50000")
            index = self._numbered(int(place))
        else:
            kind: DataKind = one_of(place, DATA_KINDS)
            if not keys:
                self._presence(kind, text, path)
                return
            index = self._of_kind(kind)
        keys = keys[1:] if keys[0] == "size" and len(keys) > 1 else keys
        of = data_fields().get(keys[0])
        if of is None or len(keys) > 1:
            wrong = keys[0] if of is None else keys[1]
            raise SettingFault(f"{wrong} is not a field", did_you_mean(wrong, data_fields()))
        body = self.values["data"][index]
        value = parse(of, text)
        before = body["kind"]
        (body["size"] if keys[0] in Size.model_fields else body)[keys[0]] = value
        about = {f"data.{kind}" for kind in (before, body["kind"]) if kind}
        self.changes.touched |= about
        if keys[0] == "kind":
            self.changes.restated |= about
        self.changes.written[f"data.{keys[0]}", str(value)] = f"{path}={text}"

    def _numbered(self, index: int) -> int:
        held = self.values["data"] = self.values["data"] or []
        if index > len(held):
            raise SettingFault(
                "leads past the end of a list", f"bodies of data are numbered; the next one is {len(held)}"
            )
        if index == len(held):
            held.append({"kind": None, "size": {}})
        return index

    def _of_kind(self, kind: DataKind) -> int:
        held = self.values["data"] = self.values["data"] or []
        found = next((i for i, body in enumerate(held) if body["kind"] == kind), len(held))
        if found == len(held):
            held.append({"kind": kind, "size": {}})
        return found

    def _presence(self, kind: DataKind, text: str, path: str) -> None:
        stands = {"no": "none", "false": "none", "yes": "some", "true": "some"}.get(text.lower(), text.lower())
        if stands not in ("none", "some", "planned"):
            raise SettingFault(f"is {text!r}: none, some or planned", f"write data.{kind}.rows=200 for a number")
        name = f"data.{kind}"
        self.changes.touched.add(name)
        if stands == "some":
            self._of_kind(kind)
            self.changes.written["data.kind", kind] = f"{path}={text}"
            return
        self.gone.add(kind)
        here = stands == "planned"
        status: Any = "planned" if here else "asserted"
        self.changes.stated.append(Evidence(name, here, status, quote=f"{path}={text}", source="answer", place=PLACE))


def _no_data(value: Any) -> list[Any] | None:
    if value is not None and value != []:
        raise SettingFault("is no data set", "write data=[] for none, data.0.rows=50000 for one")
    return [] if value == [] else None


def _field(path: str) -> FieldOf:
    known = settable()
    if path in known:
        return known[path]
    *above, last = path.split(".")
    beyond = next((name for name in known if path.startswith(f"{name}.")), None)
    if beyond:
        raise SettingFault(f"{beyond} has no fields", f"write {beyond}=VALUE")
    below = [name.removeprefix(f"{path}.") for name in known if name.startswith(f"{path}.")]
    if below:
        raise SettingFault(f"{last} is not a single value", f"name one of its fields: {', '.join(below)}")
    ending = [name for name in known if name.rpartition(".")[2].startswith(last)]
    if not above and len(ending) == 1:
        raise SettingFault(f"{last} is not a field", f"did you mean {ending[0]!r}?")
    siblings = _level(known, ".".join(above))
    if above and siblings:
        raise SettingFault(f"{last} is not a field", did_you_mean(last, siblings))
    first = path.partition(".")[0]
    raise SettingFault(f"{first} is not a field", did_you_mean(first, _level(known, "")))


def _level(known: Iterable[str], above: str) -> list[str]:
    """Return the names directly under a path."""
    start = f"{above}." if above else ""
    found = [name.removeprefix(start).partition(".")[0] for name in known if name.startswith(start)]
    return list(dict.fromkeys([*found, *([] if above else ["data", "tried"])]))


# Words


def in_words(settings: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    """Return settings as clauses, each once: ``answers must show their sources``, ``there are 500 labelled examples``.

    kinds: of the data sets that there are, ``{"data.0": "sft_pairs"}``. What is no valid setting stays as it is.
    """
    pairs = [(path.replace(".size.", "."), value) for path, _, value in (each.partition("=") for each in settings)]
    named = {**kinds, **data_kinds(settings)}
    sized = {path.rpartition(".")[0] for path, _ in pairs if path.rpartition(".")[2] in Size.model_fields}
    clauses = [
        _in_words(path, value, named) for path, value in pairs if not (path.endswith(".kind") and path[:-5] in sized)
    ]
    return list(dict.fromkeys(clauses))


def data_kinds(settings: Iterable[str]) -> dict[str, str]:
    """Return the kinds of the data sets that settings number: ``{"data.0": "sft_pairs"}``."""
    pairs = (setting.partition("=") for setting in settings)
    return {path.removesuffix(".kind"): value for path, _, value in pairs if path.endswith(".kind")}


def _in_words(path: str, text: str, kinds: Mapping[str, str]) -> str:
    above, _, key = path.rpartition(".")
    named = kinds.get(above, above.removeprefix("data."))
    kind = next((each for each in DATA_KINDS if each == named), None)
    try:
        if above.startswith("data.") and key == "kind":
            held: DataKind = one_of(text, DATA_KINDS)
            return f"there {_verb(held)} {DATA[held]}"
        if kind is not None and key in Size.model_fields:
            amount = number(text)
            unit = f"{key} of " if key in ("tokens", "bytes") else ""
            no = f"there {_verb(kind)} no {DATA[kind]}"
            return f"there are {format_count(amount)} {unit}{DATA[kind]}" if amount else no
        if path == "data":
            return "there are no data"
        if path.startswith("tried."):
            return clause(path, parse(FieldOf(path, bool, ""), text))
        return clause(path, parse(settable()[path], text)) if path in settable() else f"{path}={text}"
    except SettingFault:
        return f"{path}={text}"


def _verb(kind: DataKind) -> str:
    return "is" if kind == "corpus" else "are"


def joined(clauses: Sequence[str]) -> str:
    """Return clauses as one: ``A, B and C``."""
    return " and ".join([", ".join(clauses[:-1]), clauses[-1]] if len(clauses) > 1 else clauses)


# Values


def parse(of: FieldOf, text: str) -> Any:
    """Return a field's value as it was typed, null as None. Raises SettingFault."""
    value = _plain(text)
    if value is None:
        return None
    if of.numeric:
        value = number(text)
    elif of.choices and value not in of.choices:
        value = one_of(text, [str(choice).lower() for choice in of.choices])
        value = value == "true" if of.annotation is bool else value
    elif of.annotation is str:
        value = value if isinstance(value, str) else text
    elif of.listed and not isinstance(value, list):
        value = [value]
    try:
        return of.parsed(value)
    except ValueError as fault:
        raise SettingFault(f"{fault.args[0][:1].lower()}{fault.args[0][1:]}") from None


def _plain(text: str) -> Any:
    """Parse ``true``, ``null``, ``[a, b]``, or a word, in quotes or without."""
    try:
        return yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError:
        return text


def number(text: str) -> int | float:
    """Return a number: ``25``, ``5e4``, ``50_000``, ``14,000``, ``14k``, ``2.5b``, ``95%``. Raises SettingFault."""
    digits = text.lower().replace("_", "")
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?[kmb%]?", digits):
        digits = digits.replace(",", "")
    unit = {"k": 1e3, "m": 1e6, "b": 1e9, "%": 0.01}.get(digits[-1:])
    try:
        value = float(digits[:-1].strip()) * unit if unit else float(digits)
        return round(value) if value == round(value) else round(value, 12)
    except (ValueError, OverflowError):
        raise SettingFault(f"is {text!r}, no number", "write 27, 14000, 14k, 2.5b or 95%") from None


def one_of(word: str, known: Sequence[Any]) -> Any:
    """Return the word that is meant: itself, or the only one that begins so. Raises SettingFault."""
    low = word.strip().lower().replace(" ", "_").replace("-", "_")
    exact = [each for each in known if each.lower() == low]
    begun = exact or [each for each in known if low and each.lower().startswith(low)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise SettingFault(f"{word} is the beginning of several", f"write {' or '.join(begun)}")
    raise SettingFault(f"{word} is not valid", did_you_mean(low, known))
