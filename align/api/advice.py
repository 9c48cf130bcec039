"""From a brief, files and a machine to advice: where the adviser, the data's reader and installed rules meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from align import __version__
from align.advisor.decide import advise
from align.advisor.estimate.shape import of_directory
from align.advisor.facts import Evidence, Facts, Source, from_form
from align.advisor.gathering import gather
from align.advisor.measured import added
from align.advisor.rule import Rule
from align.advisor.text import read
from align.advisor.thresholds import Thresholds
from align.core import registry, strictyaml
from align.core.projectfile import LARGEST_FORM, Brief, text_of
from align.core.settings import check, dotted
from align.schemas.advice import Advice
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.project import DataKind, HardwareFacts, Measured, Project
from align.schemas.text import number

if TYPE_CHECKING:
    from align.advisor.model_parser import Asker


def rules() -> Mapping[str, Rule]:
    """The installed rules that can be loaded, ours and others'."""
    return registry.working("rule")


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is known of a project, before it is weighed."""

    evidence: tuple[Evidence, ...]
    description: str = ""
    languages: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    parser: str = "rules"

    @classmethod
    def of(cls, brief: Brief, limit: Thresholds | None = None) -> Case:
        """A brief: its form, what its free words say, and what follows from measurements that it keeps."""
        reading = read(brief.text)
        evidence = [*from_form(brief.project, dict(brief.places)), *reading.evidence]
        if brief.project.measured != Measured():
            evidence = added(evidence, brief.project.measured, limit or Thresholds.load())
        return cls(tuple(evidence), brief.text, tuple(reading.languages), tuple(reading.passed_over))

    def read_by(self, ask: Asker, model: str) -> Case:
        """Add what a model finds in the free words, as far as they bear it out."""
        from align.advisor import model_parser

        evidence, rejected = model_parser.read(self.description, ask) if self.description.strip() else ([], [])
        return replace(self.and_also(evidence, rejected), parser=f"llm:{model}")

    def and_also(self, more: Sequence[Evidence], unread: Sequence[str] = ()) -> Case:
        """Return the case with more evidence."""
        return replace(self, evidence=(*self.evidence, *more), unread=(*self.unread, *unread))

    def having(self, evidence: Sequence[Evidence]) -> Case:
        """Return the case with this evidence and no other."""
        return replace(self, evidence=tuple(evidence))

    def facts(self) -> Facts:
        """Return the facts that the evidence adds up to."""
        return gather(self.evidence, languages=self.languages, rejected=self.unread)

    def advice(self, limit: Thresholds, prices: Path | None = None) -> Advice:
        """Return the advice. Raises AlignError for a price file that cannot be read."""
        return weigh(self.facts(), limit, prices, self.parser)

    def outcome(self, evidence: Sequence[Evidence], limit: Thresholds) -> Advice:
        """The advice on other evidence, without what would flip it: for asking many times."""
        return weigh(replace(self, evidence=tuple(evidence)).facts(), limit, others=False)

    def form(self) -> Project:
        """The filled form, with the free words where they are not too long for a form."""
        words = self.description if len(self.description) <= LARGEST_FORM // 2 else ""
        return self.facts().project.model_copy(update={"description": words or None})


def weigh(
    facts: Facts, limit: Thresholds, prices: Path | None = None, parser: str = "rules", *, others: bool = True
) -> Advice:
    """Advice by the installed rules. others: with what would flip to other ways."""
    usable = rules()
    lost = sorted(set(registry.offers("rule")) - set(usable))
    notes = (f"rule {name} cannot be loaded and was left out: align plugins doctor" for name in lost)
    facts = replace(facts, rejected=(*facts.rejected, *notes))
    return advise(facts, limit, usable, tool=__version__, parser=parser, prices=prices, others=others)


def evaluations(project: Project, words: Sequence[str] = ()) -> list[str]:
    """The files on this machine that will be measured with: a form's, and those of ``--data eval_set=FILE``."""
    held = [body.path for body in project.data or () if body.kind == "eval_set" and body.path]
    named = [path for word in words for kind, _, path in [word.partition("=")] if kind == "eval_set"]
    return [path for path in (*held, *named) if Path(path).expanduser().is_file()]


def counted(project: Project, suites: Sequence[str] = ()) -> tuple[list[Evidence], list[str]]:
    """The files that a form names, counted, where they are on this machine; and those that are missing, in words.

    suites: evaluations whose rows must not be in the others.
    """
    found: list[Evidence] = []
    missing: list[str] = []
    for body in project.data or ():
        if body.path and Path(body.path).expanduser().exists():
            found += of_file(body.path, body.kind, suites)
        elif body.path and Path(body.path).suffix:
            missing.append(f"data.{body.kind}: {body.path} is not there, so what is claimed of it counts")
    return found, missing


def size_of(name: str | None) -> list[Evidence]:
    """The parameters of a model that is a directory here, by its config.json; an unreadable one tells nothing."""
    home = Path(name or "").expanduser()
    if not name or not (home / "config.json").is_file():
        return []
    try:
        billions = of_directory(home).params / 1e9
    except AlignError:
        return []
    quote = f"config.json: {number(billions * 1e9)} parameters"
    return [Evidence("model.params_b", billions, quote=quote, source="file", place=name)]


def of_word(word: str, suites: Sequence[str] = ()) -> list[Evidence]:
    """``--data FILE`` or ``--data KIND=FILE``, counted (see ``of_file``). Raises AlignError for what cannot be read."""
    kind, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return of_file(word, None, suites)
    if kind not in get_args(DataKind):
        raise AlignError(f"{kind!r} is no kind of data", did_you_mean(kind, get_args(DataKind)), where=f"--data {word}")
    return of_file(path, kind, suites)  # type: ignore[arg-type]  # it is one of them


def of_file(path: str, kind: DataKind | None = None, suites: Sequence[str] = ()) -> list[Evidence]:
    """A data file, counted and checked. kind: what it is for, where that is known better than its rows tell.

    suites: evaluations whose rows must not be in it, unless it is one itself.
    """
    from align.core.data.lint.measure import measure

    found = measure(path, against=() if kind == "eval_set" else suites)
    held = f"data.{kind or found.kind}"
    known = {"path": path, **found.facts}
    return [
        Evidence(held, True, quote=f"a file of {found.kind.replace('_', ' ')}", source="file", place=path),
        *(
            Evidence(f"{held}.{name}", value, quote=f"{name}: {_shown(value)}", source="file", place=path)
            for name, value in known.items()
        ),
    ]


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value).lower() if isinstance(value, bool) else str(value)


def of_model(name: str) -> list[Evidence]:
    """``--model``."""
    named = Evidence("model.name", name, quote=f"--model {name}", source="answer", place="command line")
    return [named, *size_of(name)]


def of_hardware(word: str) -> list[Evidence]:
    """``--hardware auto``, or a file with the form's ``hardware``. Raises AlignError with all that is wrong in it."""
    if word == "auto":
        from align.core.machine import here

        return _hardware(here(), "measured", "this machine")
    document = strictyaml.read(text_of(word), word)
    values = document.values
    if isinstance(values, dict) and set(values) == {"hardware"}:
        values = values["hardware"]
    if document.problems:
        raise AlignError.gather(document.problems)
    given = check(HardwareFacts, values, lambda path: f"{word}: {dotted(path)}" if path else word)
    return _hardware(given, "file", word)


def _hardware(given: HardwareFacts, source: Source, place: str) -> list[Evidence]:
    return [replace(each, place=place) for each in from_form(Project(hardware=given), source=source)]
