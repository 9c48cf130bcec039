"""The contents of advice in the order in which they are shown: one outline for terminal, Markdown and HTML.

What was understood, so that a misreading is seen at once; then the answer, its reasons, the plan, the first experiment,
the alternatives; then data, hardware and time, warnings, and open questions.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from align.advisor.fact_settings import data_kinds, in_words, joined
from align.advisor.fact_words import DATA
from align.advisor.predicates import DATA_OF
from align.schemas.advice import Advice, Fit, HardwareFit, Quote, Range, UnderstoodFact
from align.schemas.text import number

Tone = Literal["plain", "good", "warning", "error"]
LEVELS: dict[str, Tone] = {"error": "error", "warning": "warning", "note": "plain"}


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """Memory of one device by component, in GB, and its capacity."""

    parts: dict[str, float]
    total: float
    capacity: float | None


@dataclass(frozen=True, slots=True)
class Item:
    """One entry. mark: its label. more: details in small print. code: commands and settings."""

    mark: str
    text: str
    more: tuple[str, ...] = ()
    quotes: tuple[Quote, ...] = ()
    code: tuple[str, ...] = ()
    tone: Tone = "plain"
    bar: MemoryBar | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its entries."""

    id: str
    title: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TopicReading:
    """The facts of one topic, as they were understood."""

    topic: str
    entries: list[Item]
    """Each with its ``--set`` settings as ``code``, quoted for a shell where they must be."""


MATTERING = ("goal", "behaviour", "knowledge", "data", "scorer", "model", "hardware")
"""Topics that the answer may hang on: where nothing is known of one, that is shown too."""

PRIMARY = {
    "prompting": "Prompting",
    "rag": "Retrieval (RAG)",
    "continual_pretraining": "Continual pre-training",
    "post_training": "Post-training",
    "insufficient": "Not enough is known",
}


def heading(advice: Advice) -> str:
    """Return the answer in a few words: ``Post-training, with rag``."""
    companions = " and ".join(map(_words, advice.companions))
    return f"{PRIMARY[advice.primary]}, with {companions}" if companions else PRIMARY[advice.primary]


def confidence(advice: Advice) -> str:
    """Return the confidence, with its probability where one is known: ``confidence high (0.96)``."""
    known = "" if advice.probability is None else f" ({advice.probability:.2f})"
    return f"confidence {advice.confidence}{known}"


UNDERSTOOD = "What was understood"


def readings(advice: Advice) -> list[TopicReading]:
    """Return what was understood by topic; facts that rest first on the same words are one entry.

    Guesses are not put together with what is sure, and begin with ``perhaps:``.
    """
    return [
        TopicReading(topic, [_together(list(facts)) for _, facts in groupby(of_topic, _resting_on)])
        for topic, of_topic in groupby(advice.understood, lambda fact: fact.topic)
    ]


def _resting_on(fact: UnderstoodFact) -> object:
    # Without words, nothing shows that two facts belong together.
    first = fact.quotes[0] if fact.quotes else None
    return fact.setting if first is None else (first.quote, first.source, first.span, fact.guess)


def _together(facts: Sequence[UnderstoodFact]) -> Item:
    text = ", ".join(fact.text for fact in facts)
    return Item(
        "",
        f"perhaps: {text}" if facts[0].guess else text,
        quotes=_once([quote for fact in facts for quote in fact.quotes]),
        code=tuple(shlex.quote(fact.setting) for fact in facts),
    )


def not_stated(advice: Advice) -> str:
    """Return the topics of which nothing was understood and that matter: ``scorer, model``."""
    known = {fact.topic for fact in advice.understood}
    return ", ".join(topic for topic in MATTERING if topic not in known)


def correction(advice: Advice) -> str:
    """Return the ways to correct a misreading, with a setting that fits this advice."""
    held = next((fact.setting for fact in advice.understood if fact.setting.startswith("data.0.kind=")), "")
    example = "behaviour.rules_count=27"
    if held:
        example = f"data.0.kind={'sft_pairs' if held.endswith('=preference_pairs') else 'preference_pairs'}"
    return f"Misread? Add --set {example}, edit a form (--save brief.yaml), or --ask."


def outline(advice: Advice) -> list[Section]:
    """Return every section after the answer that has entries."""
    sections = [
        Section("otherwise-read", "Or read otherwise", list(_other_readings(advice))),
        Section("requested", "What was asked for", list(_requested(advice))),
        Section("why", "Why", list(_reasons(advice))),
        Section("before", "What happened here before", list(_precedents(advice))),
        Section("plan", "What to do", list(_plan(advice))),
        Section("first", "Try first", list(_first(advice))),
        Section("otherwise", "What would change this", list(_alternatives(advice))),
        Section("data", "Data", list(_data(advice))),
        Section("settings", "Settings to start from", list(_settings(advice))),
        Section("hardware", "Hardware", list(_hardware(advice.hardware)) if advice.hardware else []),
        Section("estimate", "What it takes", list(_estimate(advice))),
        Section("warnings", "Warnings", list(_warnings(advice))),
        Section("gate", "Before it ships", list(_gate(advice))),
        Section("missing", "Not known", list(_missing(advice))),
        Section("assumed", "Assumed", list(_assumed(advice))),
        Section("conflicts", "Contradictions", list(_conflicts(advice))),
        Section("unread", "Not understood", [Item("", text) for text in advice.not_understood]),
    ]
    if advice.primary == "insufficient":  # then the questions are the answer
        sections.sort(key=lambda section: section.id != "missing")
    return [section for section in sections if section.items]


def footer(advice: Advice) -> str:
    """Return the versions and hashes that the advice depends on."""
    p = advice.provenance
    hashed = {"rules": p.rules, "thresholds": p.thresholds, "reader": p.reader, "input": p.input}
    short = (f"{name} {value.removeprefix('sha256:')[:12]}" for name, value in hashed.items() if value)
    return " · ".join((f"align {p.tool}", f"facts by {p.parser}", *short))


def _other_readings(advice: Advice) -> Iterator[Item]:
    for other in advice.other_readings:
        kinds = data_kinds(fact.setting for fact in advice.understood)
        text = f"probability {other.probability:.2f}"
        if other.settings:  # a reading that only lacks facts has none
            text = f"if {joined(in_words(other.settings, kinds))} ({text})"
        settings = " ".join(f"--set {shlex.quote(setting)}" for setting in other.settings)
        more = (f"The question that decides: {other.question}",)
        yield Item(PRIMARY[other.primary], text, more, _once(other.facts), (settings,) if settings else ())


def _requested(advice: Advice) -> Iterator[Item]:
    asked = advice.requested
    if asked is not None and not asked.agrees:
        tone: Tone = "error" if asked.blocking else "warning"
        yield Item(
            _words(asked.requested), f"{_words(asked.recommended)} is advised instead: {asked.because}", tone=tone
        )


def _reasons(advice: Advice) -> Iterator[Item]:
    for reason in advice.reasons:
        tone: Tone = "error" if reason.weight == "veto" else "plain"
        verb = "rules out" if reason.weight == "veto" else "supports"
        option = "asking first" if reason.option == "insufficient" else _words(reason.option)
        why = f"{verb} {option}" + ", enough by itself" * (reason.weight == "hard")
        more = [why, *([f"would not hold if {reason.flips_if}"] if reason.flips_if else [])]
        yield Item(reason.rule, reason.because, ("; ".join(more),), _once(reason.quotes), tone=tone)


def _precedents(advice: Advice) -> Iterator[Item]:
    tones: dict[str, Tone] = {"improved": "good", "unchanged": "warning", "regressed": "error", "undecided": "plain"}
    for past in advice.precedents:
        made = f"{past.stage} of {past.model}, {past.tuning}"
        took = "" if past.hours is None else f"; took {_lasting(Range(low=past.hours, high=past.hours))}"
        on = f" on {past.hardware}" if took else ""
        more = (f"{made}{took}{on}", f"alike: {'; '.join(past.alike)}", *past.changed)
        yield Item(past.run, past.text, more, tone=tones[past.verdict])


def _plan(advice: Advice) -> Iterator[Item]:
    for count, step in enumerate(advice.plan, 1):
        needs = [f"needs {step.needs}"] if step.needs else []
        rules = [rule for rule in step.why if rule != "CODESIGN"] or step.why
        because = [f"because of {', '.join(rules)}"] if rules else []
        yield Item(f"{count}. {_words(step.stage)}", "; ".join([*["optional"] * step.optional, *needs, *because]))
    stages = {step.stage for step in advice.plan}
    for companion in advice.companions:
        if companion not in stages and not (
            companion == "post_training" and stages & (DATA_OF.keys() - {"continual_pretraining"})
        ):
            yield Item(f"with {_words(companion)}", "in addition, whatever else is done")


def _first(advice: Advice) -> Iterator[Item]:
    if advice.first_try:
        first = advice.first_try
        yield Item("", first.what, (f"takes {first.cost}", f"stop there if {first.stop_if}"))


def _alternatives(advice: Advice) -> Iterator[Item]:
    for other in sorted(advice.alternatives, key=lambda other: other.rank):
        more = (other.flips_if,) if other.flips_if else ()
        together = " ".join(f"--what-if {shlex.quote(setting)}" for setting in other.what_if)
        yield Item(_words(other.option), other.because, more, code=(together,) if together else ())


VERDICTS = {
    "ok": "enough",
    "thin": "few",
    "too_little": "too few",
    "missing": "none are known",
    "unknown": "there are some, the number is not known",
}


def _data(advice: Advice) -> Iterator[Item]:
    tones: dict[str, Tone] = {"ok": "good", "thin": "warning", "too_little": "error", "missing": "error"}
    for need in advice.data:
        unit = "documents" if need.unit == "docs" else need.unit
        given = "" if need.given is None else f": {need.given:,} {unit}"
        wanted = f"at least {need.floor:,} {unit} are needed, {need.comfortable:,} or more are comfortable"
        if need.comfortable <= 1:
            wanted = "any number will do"
        code, tone = (need.lint,) if need.lint else (), tones.get(need.verdict, "plain")
        name = next((words for kind, words in DATA.items() if kind == need.need), _words(need.need))
        yield Item(name, f"{VERDICTS[need.verdict]}{given}; {wanted}", code=code, tone=tone)


def _settings(advice: Advice) -> Iterator[Item]:
    for chosen in advice.algorithms:
        code = (" ".join(f"{key}={value}" for key, value in chosen.start.items()),) if chosen.start else ()
        name = chosen.name if chosen.name == chosen.stage else f"{chosen.stage}: {chosen.name}"
        yield Item(_words(name), f"{chosen.tuning}; source: {chosen.source}", code=code)


def _hardware(hardware: HardwareFit) -> Iterator[Item]:
    yield Item("given", hardware.given)
    if hardware.asked:
        yield _fit(hardware.asked, hardware, "asked for, ")
    if hardware.chosen and hardware.chosen != hardware.asked:
        yield _fit(hardware.chosen, hardware, "")
    for fit in hardware.rejected:
        yield _fit(fit, hardware, "")


def _fit(fit: Fit, hardware: HardwareFit, before: str) -> Item:
    tones: dict[str, Tone] = {"fits": "good", "tight": "warning", "does_not_fit": "error"}
    of = f" of {hardware.capacity_gb:.4g}" if hardware.capacity_gb else ""
    lacking = f", {fit.short_gb:.3g} GB too much" if fit.verdict == "does_not_fit" else ""
    verdict = f"{_words(fit.verdict)}:" if hardware.capacity_gb else "takes"
    text = f"{before}{verdict} {fit.total_gb:.3g}{of} GB on each GPU{lacking}"
    more = (f"cheapest fix: {fit.knob}",) if fit.knob else ()
    bar = MemoryBar(fit.per_gpu_gb, fit.total_gb, hardware.capacity_gb)
    return Item(fit.strategy, text, more, tone=tones[fit.verdict], bar=bar)


def _estimate(advice: Advice) -> Iterator[Item]:
    found = advice.estimate
    if found is None:
        return
    for name, value, unit in (
        ("tokens", found.tokens, ""),
        ("arithmetic", found.flops, " FLOPs"),
        ("GPU time", found.gpu_hours, " GPU-hours"),
        ("time", found.wall_hours, None),
        ("cost", found.cost, f" {found.currency}"),
    ):
        if value is not None:
            yield Item(name, _lasting(value) if unit is None else between(value) + unit)
    if found.basis:
        yield Item("", "; ".join(dict.fromkeys(found.basis.split("; "))))


def _warnings(advice: Advice) -> Iterator[Item]:
    for warning in sorted(advice.warnings, key=lambda warning: list(LEVELS).index(warning.level)):
        more = (f"{warning.level}, {warning.rule}",)
        yield Item(warning.id, warning.text, more, _once(warning.quotes), tone=LEVELS[warning.level])


def _gate(advice: Advice) -> Iterator[Item]:
    gate = advice.evals
    if gate is None:
        return
    yield Item("must improve", ", ".join(gate.target) or "a measure of your own")
    if gate.guard:
        yield Item("must not get worse", ", ".join(gate.guard))
    yield Item("rule", gate.rule)
    seen = "" if gate.detectable is None else f"; those on hand show {100 * gate.detectable:.3g} points or more"
    yield Item("rows", f"{gate.min_rows:,} held-out rows are needed to see the effect{seen}")


def _missing(advice: Advice) -> Iterator[Item]:
    tone: Tone = "warning" if advice.primary == "insufficient" else "plain"
    for question in advice.missing:
        more = (f"decides: {question.would_change}",) if question.would_change else ()
        yield Item(question.field, question.question, more, tone=tone)


def _assumed(advice: Advice) -> Iterator[Item]:
    for taken in advice.assumptions:
        fact, equals, value = taken.fact.partition(" = ")
        yield Item(fact if equals else "", f"{value or fact}, {taken.why}", (taken.effect,))


def _conflicts(advice: Advice) -> Iterator[Item]:
    for fact, words in dict.fromkeys((c.fact, f"{c.taken} counts, not {c.dropped}") for c in advice.conflicts):
        yield Item(fact, words)


def between(value: Range) -> str:
    """Format a range as ``1.5 to 4``."""
    low, high = number(value.low), number(value.high)
    return low if low == high else f"{low} to {high}"


def _lasting(hours: Range) -> str:
    """Format hours in the unit that suits them: ``3 to 5 minutes``."""
    for unit, name in ((48.0, "days"), (1.0, "hours"), (1 / 60, "minutes")):
        if hours.high >= unit:
            size = 24.0 if name == "days" else unit
            return f"{between(Range(low=hours.low / size, high=hours.high / size))} {name}"
    return "under a minute"


def _once(quotes: Sequence[Quote]) -> tuple[Quote, ...]:
    """Return each quote once: the same words may support several fields."""
    found: dict[tuple[str, str], Quote] = {}
    for quote in quotes:
        if quote.fact != "nothing":
            found.setdefault((quote.quote, quote.source), quote)
    return tuple(found.values())


def _words(name: str) -> str:
    return {"post_training": "post-training", "continual_pretraining": "continual pre-training"}.get(
        name, name.replace("_", " ")
    )
