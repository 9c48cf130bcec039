"""Advice by the installed rules on a brief, data files and a machine, and answers to questions about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import __version__
from align.advisor import alternatives
from align.advisor.alternatives import WhyNot
from align.advisor.assemble import advise as decide
from align.advisor.decision import conclude
from align.advisor.estimate.model_shape import shape_of_directory
from align.advisor.fact_settings import correct, suppose
from align.advisor.measured_evidence import add_measurements
from align.advisor.merge_evidence import gather, without_guesses
from align.advisor.precedents import History, from_history, taken, with_precedents
from align.advisor.project_facts import Evidence, Facts, Reading, Source, from_form
from align.advisor.reading import read_words
from align.advisor.rule import Rule
from align.advisor.thresholds import Thresholds
from align.api.input_types import BriefLike, DataFile, Files, as_brief, as_files
from align.core.config import yaml_loader
from align.core.config.project_file import LARGEST_FORM, Brief, text_of
from align.core.plugin_system import registry
from align.core.plugin_system.registry import check, dotted
from align.core.util.progress import working
from align.core.util.system_errors import explaining
from align.schemas.advice import Advice
from align.schemas.errors import AlignError
from align.schemas.project import HardwareFacts, Measured, Project
from align.schemas.text import number

if TYPE_CHECKING:
    from align.advisor.interview_questions import InterviewQuestion

HardwareLike = str | Path | Mapping[str, Any] | HardwareFacts
"""``"auto"`` for this machine, a file with the form's ``hardware``, or its values."""
AnswersLike = str | Path | Mapping[str, Any]
"""A YAML file of answers, ``FIELD: VALUE`` each, or the same as a mapping; None says unknown."""
SettingsLike = Sequence[str] | Mapping[str, Any]
"""Facts as ``PATH=VALUE``, or the same as a mapping: ``{"behaviour.rules_count": 5, "data.0.kind": "documents"}``."""

HistoryLike = str | Path | History
"""A directory of runs, one run, or a gate's JSON; or what was read of it."""


@dataclass(frozen=True, slots=True)
class BriefReader:
    """A language model that reads the free words of a brief as well; it is believed where the words bear it out.

    model: its name at ``url``, an OpenAI-compatible server; without a url a directory or hub id on this machine.
    key_env: the environment variable with the server's key. allow_network: the brief may leave this machine.
    offline: only replies that were recorded count. record: where replies are kept; None: a place in align's cache.
    """

    model: str
    url: str | None = None
    key_env: str | None = None
    allow_network: bool = False
    offline: bool = False
    record: Path | None = None

    def read(self, description: str) -> tuple[list[Evidence], list[str]]:
        """Return the evidence found in the words, and what was rejected, in words.

        Raises AlignError where the model does not answer, or its server is on another machine and that was not allowed.
        """
        from align.advisor import model_parser
        from align.core.inference.json_client import open_client

        model = open_client(
            self.model,
            self.url,
            key_env=self.key_env,
            allow_network=self.allow_network,
            offline=self.offline,
            record=self.record,
        )
        if not description.strip():
            return [], []
        with working(f"{self.model} reads the brief"):
            return model_parser.read(description, model)


@explaining()
def advise(
    brief: BriefLike | None = None,
    *,
    data: Files = (),
    model: str | Path | None = None,
    hardware: HardwareLike | None = None,
    measured: Measured | None = None,
    answers: AnswersLike | None = None,
    settings: SettingsLike = (),
    ask: Callable[[InterviewQuestion], Any] | None = None,
    reader: BriefReader | None = None,
    thresholds: str | Path | None = None,
    prices: str | Path | None = None,
    history: HistoryLike | None = None,
) -> Advice:
    """Return whether training is the answer, which kind, whether it fits, and what must hold before it ships.

    brief: a file (a Path, or a string that ends in .yaml, .yml, .json, .md or .txt), free words, or a form (a mapping
    or ``align.Project``). data: files to count and check, by kind or not: ``{"sft_pairs": "letters.jsonl"}``. model:
    the directory or hub id to start from. hardware: ``"auto"`` for this machine, or the form's ``hardware``. measured:
    what ``align.measure`` found. answers: to the adviser's questions, by field. settings: facts that correct what was
    read, as ``Advice.understood`` and ``OtherReading.settings`` have them; they are as strong as answers. ask: called
    with each question that could change the advice (nine at most), returns a value of its field or None for unknown;
    EOFError ends the questions. reader: a language model that reads the free words too. thresholds: a YAML file laid
    over the shipped ones. prices: a YAML file of prices of GPU-hours, for costs. history: a directory of runs and
    evals, whose results count as precedents; or one run or a gate's JSON, for advice after its verdict. Then ``brief``
    may be left out: it is the run's ``project:``.

    The same inputs give the same advice. Reads files; opens no connection unless ``reader`` has one; imports torch only
    for a ``reader`` on this machine. Raises AlignError, with all that is wrong, for what cannot be read.
    """
    case = AdviceCase.collect(
        brief,
        data=data,
        model=model,
        hardware=hardware,
        measured=measured,
        answers=answers,
        settings=settings,
        ask=ask,
        reader=reader,
        thresholds=thresholds,
        history=history,
    )
    return case.advice(prices)


def rules() -> Mapping[str, Rule]:
    """Return the installed rules that can be loaded, align's own and others'."""
    return registry.working("rule")


@dataclass(frozen=True, slots=True)
class AdviceCase:
    """Evidence about a project: gives advice, and answers questions about it.

    evidence: what was read, each piece with its place. description: the brief's free words. languages: those found in
    it. unread: what was not understood, in words. parser: what read the words, ``rules`` or ``llm:NAME``. reading: how
    they were read as a whole. history: what was trained and measured here before; what is ``taken`` from it is part of
    the evidence.
    """

    evidence: tuple[Evidence, ...]
    description: str = ""
    languages: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    parser: str = "rules"
    thresholds: Thresholds = field(default_factory=Thresholds.load)
    reading: Reading | None = None
    history: History = field(default_factory=History)

    @classmethod
    @explaining()
    def collect(
        cls,
        brief: BriefLike | None = None,
        *,
        data: Files = (),
        model: str | Path | None = None,
        hardware: HardwareLike | None = None,
        measured: Measured | None = None,
        answers: AnswersLike | None = None,
        settings: SettingsLike = (),
        ask: Callable[[InterviewQuestion], Any] | None = None,
        reader: BriefReader | None = None,
        thresholds: str | Path | None = None,
        history: HistoryLike | None = None,
    ) -> AdviceCase:
        """Read all that ``align.advise`` is given, and raise as it does."""
        limit = Thresholds.load(thresholds)
        past = as_history(history)
        known = with_measured(brief_or_project(brief, past), measured)
        files = as_files(data)
        suites = evaluation_files(known.project, files)
        by_model, rejected = ([], []) if reader is None else reader.read(known.text)
        case = cls.of(known, limit, by_model).and_also(*count_form_files(known.project, suites))
        if reader is not None:
            case = replace(case.and_also((), rejected), parser=f"llm:{reader.model}")
        for file in files:
            case = case.and_also(evidence_of_file(file, suites))
        if model:
            case = case.and_also(evidence_of_model(str(model)))
        else:
            case = case.and_also(evidence_of_size(known.project.model.name))
        if hardware is not None:
            case = case.and_also(evidence_of_hardware(hardware))
        if answers is not None:
            case = case.and_also(evidence_of_answers(answers, limit))
        case = case.corrected(settings)
        case = case.after(past)
        return case if ask is None else case.interviewed(ask)

    @classmethod
    def of(cls, brief: Brief, thresholds: Thresholds | None = None, by_model: Sequence[Evidence] = ()) -> AdviceCase:
        """Return a brief's case: its form, the facts in its free words, and what follows from measurements in it.

        by_model: what a language model read in the free words.
        """
        limit = thresholds or Thresholds.load()
        usable = rules()
        words = read_words(brief.text, lambda evidence: conclude(gather(evidence), limit, usable), by_model)
        evidence = [*from_form(brief.project, dict(brief.places)), *words.evidence]
        if brief.project.measured != Measured():
            evidence = add_measurements(evidence, brief.project.measured, limit)
        unread = tuple(words.passed_over)
        return cls(tuple(evidence), brief.text, tuple(words.languages), unread, thresholds=limit, reading=words.reading)

    def and_also(self, more: Sequence[Evidence], unread: Sequence[str] = ()) -> AdviceCase:
        """Return the case with more evidence."""
        return replace(self, evidence=(*self.evidence, *more), unread=(*self.unread, *unread))

    def after(self, history: History) -> AdviceCase:
        """Return the case with a history, and the evidence that is taken from it."""
        return replace(self.and_also(taken(history, self.facts())), history=history)

    def having(self, evidence: Sequence[Evidence]) -> AdviceCase:
        """Return the case with this evidence and no other."""
        return replace(self, evidence=tuple(evidence))

    def corrected(self, settings: SettingsLike) -> AdviceCase:
        """Return the case with facts corrected, which is more than laid over: what contradicts them is dropped.

        Counted files and measurements stay, since they are stronger. Raises AlignError for every setting that does not
        fit the form.
        """
        listed = _settings(settings)
        return self.having(correct(self.evidence, listed)) if listed else self

    def interviewed(self, answer: Callable[[InterviewQuestion], Any]) -> AdviceCase:
        """Return the case with answers to the questions that could change the advice, nine at most."""
        from align.advisor.interview import interview

        # A question takes some hundred decisions: rules are looked up once, and what would flip them is left out.
        usable = rules()

        def outcome(evidence: Sequence[Evidence]) -> Advice:
            return decide(self.having(evidence).facts(), self.thresholds, usable, others=False)

        readings = self.advice().other_readings
        return self.and_also(interview(without_guesses(self.evidence), outcome, self.thresholds, answer, readings))

    def facts(self) -> Facts:
        """Return the facts that the evidence adds up to."""
        return gather(
            without_guesses(self.evidence), languages=self.languages, rejected=self.unread, reading=self.reading
        )

    @explaining()
    def advice(self, prices: str | Path | None = None) -> Advice:
        """Return the advice. Raises AlignError for a price file that cannot be read."""
        facts = self.facts()
        advice = weigh(facts, self.thresholds, _path(prices), self.parser)
        without = [e for e in self.evidence if not from_history(e)]
        before = None
        if len(without) < len(self.evidence):
            before = weigh(self.having(without).facts(), self.thresholds, others=False)
        return with_precedents(advice, self.history, facts, before)

    def why_not(self, option: str) -> WhyNot:
        """Return the reasons for and against an option (``"grpo"``, ``"rag"``), and the least that would flip to it.

        Raises AlignError for an option that is none.
        """
        return alternatives.why_not(self.facts(), self.thresholds, rules(), option)

    @explaining()
    def what_if(self, settings: SettingsLike, prices: str | Path | None = None) -> Advice:
        """Return the advice with settings laid over the facts: ``{"knowledge.changes": "daily"}``, or ``KEY=VALUE``.

        ``align.advisor.alternatives.compare`` lists what differs from the advice as it is.
        Raises AlignError for every setting that does not fit the form.
        """
        facts = suppose(self.facts(), _settings(settings))
        return with_precedents(weigh(facts, self.thresholds, _path(prices), self.parser), self.history, facts)

    def form(self) -> Project:
        """Return the filled form, with the free words where they fit in a form and say nothing else next to it.

        Words that were corrected could: a form cannot say that there are no data of a kind that they name.
        """
        project = self.facts().project.model_copy(update={"description": None})
        if not self.description or len(self.description) > LARGEST_FORM // 2:
            return project
        described = project.model_copy(update={"description": self.description})
        again = AdviceCase.of(as_brief(described), self.thresholds).facts().project
        return described if again.model_copy(update={"description": None}) == project else project

    def run_file(self, advice: Advice, name: str = "run.yaml") -> str:
        """Return the text of a run file for the advice, once it has been seen to load.

        name: the file that it is to be written to, for the command in its head. What must be put in place before it
        runs is listed there too. Raises AlignError where the advice has nothing to train.
        """
        from align.advisor.emit import comments, emit
        from align.core.config import run_file as runfile

        emitted = emit(advice, self.form(), limit=self.thresholds)
        head = "".join(f"# {line}".rstrip() + "\n" for line in comments(advice, emitted, name))
        text = head + yaml_loader.write(emitted.values)
        runfile.parse(text, name)
        return text


def weigh(
    facts: Facts, limit: Thresholds, prices: Path | None = None, parser: str = "rules", *, others: bool = True
) -> Advice:
    """Return advice by the installed rules. others: with what would flip to other ways."""
    usable = rules()
    lost = sorted(set(registry.offers("rule")) - set(usable))
    notes = (f"rule {name} cannot be loaded and was left out: align plugins doctor" for name in lost)
    facts = replace(facts, rejected=(*facts.rejected, *notes))
    return decide(facts, limit, usable, tool=__version__, parser=parser, prices=prices, others=others)


def as_history(history: HistoryLike | None) -> History:
    """Return what was trained and measured before; nothing for None. Raises AlignError as ``read_history`` does."""
    if history is None or isinstance(history, History):
        return history or History()
    from align.api.history import read_history

    return read_history(history)


def brief_or_project(brief: BriefLike | None, history: History) -> Brief:
    """Return the brief; for None the project of the run that the history is of. Raises AlignError where it has none."""
    if brief is not None:
        return as_brief(brief)
    if history.project is None:
        what = "there is no brief, and the history is of no run with a project:"
        raise AlignError(what, "give a brief, or a run whose run file has a project:", where="brief")
    return as_brief(history.project)


def with_measured(brief: Brief, found: Measured | None) -> Brief:
    """Return the brief with new measurements in its form, over those that were there."""
    if found is None:
        return brief
    values = brief.project.measured.model_dump(exclude_none=True) | found.model_dump(exclude_none=True)
    project = brief.project.model_copy(update={"measured": Measured.model_validate(values)})
    return replace(brief, project=project)


def evaluation_files(project: Project, files: Sequence[DataFile] = ()) -> list[str]:
    """Return the files on this machine that will be measured with: a form's, and those given as an ``eval_set``."""
    held = [body.path for body in project.data or () if body.kind == "eval_set" and body.path]
    named = [file.path for file in files if file.kind == "eval_set"]
    return [path for path in (*held, *named) if Path(path).expanduser().is_file()]


def count_form_files(project: Project, suites: Sequence[str] = ()) -> tuple[list[Evidence], list[str]]:
    """Count the files that a form names where they are on this machine; return those that are missing, in words, too.

    suites: evaluations whose rows must not be in the others.
    """
    found: list[Evidence] = []
    missing: list[str] = []
    for body in project.data or ():
        if body.path and Path(body.path).expanduser().exists():
            found += evidence_of_file(DataFile(body.path, body.kind), suites)
        elif body.path and Path(body.path).suffix:
            missing.append(f"data.{body.kind}: {body.path} is not there, so what is claimed of it counts")
    return found, missing


def evidence_of_size(name: str | None) -> list[Evidence]:
    """Return the size of a model that is a directory here, by its config.json; nothing where that is unreadable."""
    home = Path(name or "").expanduser()
    if not name or not (home / "config.json").is_file():
        return []
    try:
        billions = shape_of_directory(home).params / 1e9
    except AlignError:
        return []
    quote = f"config.json: {number(billions * 1e9)} parameters"
    return [Evidence("model.params_b", billions, quote=quote, source="file", place=name)]


def evidence_of_file(file: DataFile, suites: Sequence[str] = ()) -> list[Evidence]:
    """Return what a data file holds, counted and checked. Raises AlignError where it cannot be read.

    suites: evaluations whose rows must not be in it, unless it is one itself.
    """
    from align.core.data.lint.linter import measure

    path = file.path
    found = measure(path, against=() if file.kind == "eval_set" else suites)
    held = f"data.{file.kind or found.kind}"
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


def evidence_of_model(name: str) -> list[Evidence]:
    """Return the name of the model that was given, and its size where it can be read."""
    named = Evidence("model.name", name, quote=f"model: {name}", source="answer", place="arguments")
    return [named, *evidence_of_size(name)]


def evidence_of_hardware(hardware: HardwareLike) -> list[Evidence]:
    """Return what a machine has. Raises AlignError with all that is wrong in the file or the values."""
    if isinstance(hardware, HardwareFacts):
        return _hardware(hardware, "answer", "hardware")
    if hardware == "auto":
        from align.core.util.detect_hardware import facts

        return _hardware(facts(), "measured", "this machine")
    place, values = "hardware", hardware
    if not isinstance(hardware, Mapping):
        place = str(hardware)
        values = _yaml_file(place)
    if isinstance(values, Mapping) and set(values) == {"hardware"}:
        values = values["hardware"]
    given = check(HardwareFacts, values, lambda path: f"{place}: {dotted(path)}" if path else place)
    return _hardware(given, "answer" if isinstance(hardware, Mapping) else "file", place)


def _hardware(given: HardwareFacts, source: Source, place: str) -> list[Evidence]:
    return [replace(each, place=place) for each in from_form(Project(hardware=given), source=source)]


def evidence_of_answers(answers: AnswersLike, limit: Thresholds) -> list[Evidence]:
    """Return answers to the adviser's questions as evidence. Raises AlignError with all that is wrong in them."""
    from align.advisor.interview_questions import read_answers

    if isinstance(answers, Mapping):
        return read_answers(dict(answers), "answers", limit)
    return read_answers(_yaml_file(str(answers)), str(answers), limit)


def _yaml_file(path: str) -> Any:
    document = yaml_loader.read(text_of(path), path)
    if document.problems:
        raise AlignError.gather(document.problems)
    return document.values


def _settings(settings: SettingsLike) -> list[str]:
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [settings] if isinstance(settings, str) else list(settings)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
