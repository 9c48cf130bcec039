"""Precedents: stages that were trained and measured here before, as evidence for a project like theirs.

Pure: ``align.api.history`` reads them from disk. ``taken`` returns the evidence that follows from them before the
decision; ``with_precedents`` adds what they say to the advice afterwards, and states there all that they changed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from align.advisor.predicates import FITS_WEIGHTS, ONLINE, skill
from align.advisor.project_facts import Evidence, Facts, Status
from align.schemas.advice import (
    Advice,
    AdviceWarning,
    Assumption,
    Confidence,
    Precedent,
    PrecedentScore,
)
from align.schemas.project import DataKind, Project

LIKE_ROWS = 5.0
"""Largest ratio of two numbers of rows that still count as alike."""
LIKE_PARAMS = 4.0
"""The same of the parameters of two models."""
MOST = 3
"""Like runs that are shown; the project's own comes in addition."""
PLACE = "history: "
"""Begins the place of evidence that was taken from a precedent."""

Verdict = Literal["improved", "unchanged", "regressed", "undecided"]


@dataclass(frozen=True, slots=True)
class PastStage:
    """A finished stage, and the verdict of the gate on it, as ``Precedent`` describes them.

    directory: the run's, as commands take it. learning_rate: None where it has none. capability: of the run's project,
    where it names one. blocking: names of units and checks that the gate's outcome rests on. items_needed: that the
    gate asked for where it could not tell. held_out: loss on held-out rows before and after. open_stages: of its run,
    not finished yet. own: it is of the run that was asked about; judged: it is the stage that this is about.
    """

    run: str
    directory: str
    stage: str
    model: str
    data: DataKind
    params_b: float | None = None
    tuning: Literal["full", "lora", "qlora"] = "full"
    learning_rate: float | None = None
    rows: int | None = None
    capability: str | None = None
    outcome: str = ""
    blocking: tuple[str, ...] = ()
    scores: tuple[PrecedentScore, ...] = ()
    items_needed: int | None = None
    held_out: tuple[float, float] | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    hardware: str = ""
    open_stages: tuple[str, ...] = ()
    own: bool = False
    judged: bool = False


@dataclass(frozen=True, slots=True)
class ModelScore:
    """The score of a model on an eval, where more is better and 1 is all. place: its eval run."""

    model: str
    eval: str
    type: str
    score: float
    items: int
    place: str


@dataclass(frozen=True, slots=True)
class History:
    """The past, as far as it was read. unread: the rest, in words. project: of the run that was asked about."""

    stages: tuple[PastStage, ...] = ()
    scores: tuple[ModelScore, ...] = ()
    unread: tuple[str, ...] = ()
    project: Project | None = None

    @property
    def judged(self) -> PastStage | None:
        """The stage of the project's own run that advice is asked after."""
        return next((stage for stage in self.stages if stage.judged), None)


# Before the decision


def taken(history: History, facts: Facts) -> list[Evidence]:
    """Return the evidence that follows from the history, for facts as they are without it.

    Of the project's own run: that training was tried, and what the brief does not state of model and data. A score of
    the untouched model on the brief's own eval is its baseline, where the brief states none; after an own run that
    improved nothing the baseline is the new score.
    """
    own = history.judged
    found = [] if own is None else [*_of_own_run(own, facts)]
    stated = facts.why("evals.baseline")
    if stated is not None and stated.source == "answer":  # the user's last word
        return found
    if own is not None and own.outcome and verdict(own, facts) == "unchanged":
        return [*found, *_new_baseline(own, facts)]
    if facts.project.evals.baseline is None:
        found += _untouched(history, facts, own)
    return found


def from_history(evidence: Evidence) -> bool:
    """Return whether a piece of evidence was taken from a precedent."""
    return evidence.place.startswith(PLACE)


def _of_own_run(own: PastStage, facts: Facts) -> Iterator[Evidence]:
    if own.stage in FITS_WEIGHTS and own.stage != "continual_pretraining":
        yield _evidence("tried.fine_tuning", True, f"{own.stage} was trained: {own.run}", own.run, status="tried")
    elif verdict(own, facts) == "improved":
        yield _evidence("knowledge.pretraining_done", True, f"pre-training passed its gate: {own.run}", own.run)
    if facts.why("model.name") is None and facts.why("model.params_b") is None:
        yield _evidence("model.name", own.model, f"model: {own.model}", own.run)
        if own.params_b is not None:
            yield _evidence("model.params_b", own.params_b, f"{own.params_b:.3g}B parameters", own.run)
    if own.rows is not None and not facts.all(f"data.{own.data}"):
        yield _evidence(f"data.{own.data}", True, f"trained on {own.data}", own.run)
        yield _evidence(f"data.{own.data}.rows", own.rows, f"{own.rows:,} rows", own.run)


def _new_baseline(own: PastStage, facts: Facts) -> Iterator[Evidence]:
    """Yield the score after an own run that improved nothing; where that is the target already, the score before."""
    score, wanted = _target_score(own, facts), facts.project.evals.target
    if score is None or score.before is None or score.after is None or not 0 <= score.after <= 1:
        return
    reached = wanted is not None and score.after >= wanted
    value = score.before if reached else score.after
    yield _evidence("evals.baseline", value, f"{score.name}: {value:.3g} on {score.items:,} items", own.run)


def _untouched(history: History, facts: Facts, own: PastStage | None) -> Iterator[Evidence]:
    model = facts.project.model.name or (own.model if own is not None else None)
    fitting = [score for score in history.scores if _named(facts, score.eval, score.type) and same_model(score, model)]
    for best in sorted(fitting, key=lambda score: (-score.items, score.place, score.eval))[:1]:
        figures = f"{best.score:.3g} on {best.items:,} items"
        quote = f"{best.eval} of {best.model} before training, with the eval's own prompt: {figures}"
        yield _evidence("evals.baseline", best.score, quote, best.place)


def same_model(score: ModelScore, name: str | None) -> bool:
    """Return whether a score is of the model of this name: a directory or hub id, compared by its last part."""
    return name is not None and _last(score.model) == _last(name)


def _last(path: str) -> str:
    """Return the part of a path or hub id that names a model; of an export all, as each is called ``export``."""
    last = path.rstrip("/").rpartition("/")[2].casefold()
    return path.casefold() if last == "export" else last


def _named(facts: Facts, *names: str) -> bool:
    """Return whether the brief names an eval as its metric or in its suite."""
    wanted = {_plain(name) for name in (facts.project.evals.metric, *facts.project.evals.suite) if name}
    return any(_plain(name) in wanted for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _target_score(stage: PastStage, facts: Facts) -> PrecedentScore | None:
    """Return the score of the eval that the brief names; else the only one that gates; else None."""
    named = [score for score in stage.scores if score.role != "domain" and _named(facts, score.name)]
    gating = [score for score in stage.scores if score.role == "eval"]
    found = named or (gating if len(gating) == 1 else [])
    return found[0] if found else None


def _evidence(field: str, value: object, words: str, run: str, status: Status = "asserted") -> Evidence:
    measured = field.startswith(("evals.", "tried."))
    return Evidence(field, value, status, words, source="measured" if measured else "file", place=f"{PLACE}{run}")


# Verdict and likeness


def verdict(stage: PastStage, facts: Facts) -> Verdict:
    """Return what the gate's numbers say of a stage: of the eval that the brief names, else of all that gates."""
    if stage.outcome == "regressed":
        return "regressed"
    if stage.outcome not in ("pass", "inconclusive"):
        return "undecided"
    named = [score for score in stage.scores if _named(facts, score.name)]
    meant = named or [score for score in stage.scores if score.role in ("domain", "eval")]
    if not any(score.verdict == "improved" for score in meant):
        return "unchanged"
    return "improved" if stage.outcome == "pass" else "undecided"


def likeness(stage: PastStage, facts: Facts, methods: Iterable[str]) -> tuple[list[str], float] | None:
    """Return why a stage is like the project, and how far it is from it (0: equal); None where it is not alike.

    It must have trained by one of ``methods`` or from a kind of data that the project has, and agree in something else.
    What is known of both and differs, by more than `LIKE_ROWS` and `LIKE_PARAMS` for numbers, excludes it; what is
    unknown of either is no reason for or against.
    """
    if stage.stage in methods:
        reasons = [f"the same method, {stage.stage}"]
    elif facts.coming(stage.data) is not None:
        reasons = [f"the same kind of data, {stage.data}"]
    else:
        return None
    distance = 0.0
    wanted = skill(facts)
    if wanted and stage.capability:
        if _plain(wanted) != _plain(stage.capability):
            return None
        reasons.append(f"the same capability, {wanted}")
    held = facts.coming(stage.data)
    sizes = (
        ("rows", stage.rows, held.size.rows if held is not None else None, LIKE_ROWS),
        ("parameters", stage.params_b, facts.project.model.params_b, LIKE_PARAMS),
    )
    for unit, then, now, most in sizes:
        if then and now:
            ratio = abs(math.log(then / now))
            if ratio > math.log(most) + 1e-9:
                return None
            distance += ratio
            reasons.append(f"{_count(then, unit)}, here {_count(now, unit)}")
    name = facts.project.model.name
    if name and _last(name) == _last(stage.model):
        reasons.append(f"the same model, {stage.model}")
    if named := [score.name for score in stage.scores if _named(facts, score.name)]:
        reasons.append(f"the same eval, {named[0]}")
    return (reasons, distance) if len(reasons) > 1 else None


def _count(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if unit == "rows" else f"{value:.3g}B {unit}"


# After the decision


def with_precedents(advice: Advice, history: History, facts: Facts, before: Advice | None = None) -> Advice:
    """Return the advice with the project's own run and the nearest like ones, and what they change.

    facts: with what was ``taken``. before: the advice without that, where anything was taken. A like run that failed,
    or improved nothing beyond its interval, is a warning; confidence falls where the plan rests on that method.
    """
    methods = {step.stage for step in advice.plan if not step.optional}
    asked = facts.project.requested
    near: list[tuple[int, float, str, PastStage, list[str]]] = []
    own: list[PastStage] = []
    for stage in history.stages:
        if stage.own:
            own += [stage] * (stage.judged or bool(stage.outcome))
        elif like := likeness(stage, facts, methods | ({asked} if asked else set())):
            reasons, distance = like
            near.append((-len(reasons), distance, stage.run, stage, reasons))
    own.sort(key=lambda stage: (not stage.judged, stage.run))
    near.sort(key=lambda one: one[:3])
    shown = [(stage, ["the project's own run"]) for stage in own]
    shown += [(stage, reasons) for *_, stage, reasons in near[:MOST]]
    if not shown and not history.unread and before is None:
        return advice
    failed = [stage for stage, _ in shown if verdict(stage, facts) in ("regressed", "unchanged")]
    confidence = _lower(advice.confidence) if any(stage.stage in methods for stage in failed) else advice.confidence
    precedents = []
    for stage, reasons in shown:
        changed = [*_taken_from(stage.run, facts, advice, before)]
        if stage in failed:
            changed.append("it is a warning of this advice")
            if confidence != advice.confidence and stage.stage in methods:
                changed.append(f"the confidence falls from {advice.confidence} to {confidence}")
        precedents.append(_precedent(stage, facts, advice, reasons, changed))
    judged = [precedent.next for precedent in precedents if precedent.next]
    warnings = [*advice.warnings, *_warned(failed, facts)]
    level = ("error", "warning", "note")
    estimate, took = advice.estimate, _took(shown)
    if estimate is not None and took:
        estimate = estimate.model_copy(update={"basis": "; ".join(filter(None, (estimate.basis, took)))})
    return advice.model_copy(
        update={
            "confidence": confidence,
            "summary": _summary(judged, advice.summary),
            "precedents": precedents,
            "warnings": sorted(warnings, key=lambda warning: level.index(warning.level)),
            "estimate": estimate,
            "assumptions": [*advice.assumptions, *_measured_baseline(facts, advice, before, own)],
            "not_understood": [*advice.not_understood, *history.unread],
            "provenance": advice.provenance.model_copy(
                update={"input": _hashed(advice.provenance.input, precedents, history.unread)}
            ),
        }
    )


def _summary(judged: Sequence[str], summary: str) -> str:
    """Return the summary with what to do after a verdict in front."""
    if not judged:
        return summary
    return f"{_sentence(judged[0])}. The rules on the project itself: {summary[:1].lower()}{summary[1:]}"


def _lower(confidence: Confidence) -> Confidence:
    return "medium" if confidence == "high" else "low"


def _precedent(
    stage: PastStage, facts: Facts, advice: Advice, reasons: Sequence[str], changed: Sequence[str]
) -> Precedent:
    return Precedent(
        run=stage.run,
        stage=stage.stage,
        model=stage.model,
        params_b=stage.params_b,
        tuning=stage.tuning,
        data=stage.data,
        rows=stage.rows,
        outcome=stage.outcome,
        verdict=verdict(stage, facts),
        scores=list(stage.scores),
        hours=stage.hours,
        gpu_hours=stage.gpu_hours,
        hardware=stage.hardware,
        own=stage.own,
        alike=list(reasons),
        text=describe(stage, facts),
        changed=list(changed),
        next=_next(stage, facts, advice) if stage.judged else "",
    )


def describe(stage: PastStage, facts: Facts) -> str:
    """Return what happened in a sentence: ``5,000 rows reached 0.81 of ifeval here, from 0.62 (...); gate: pass``."""
    much = "the run" if stage.rows is None else f"{stage.rows:,} rows"
    reached = [_reached(score) for score in _telling(stage, facts)]
    if reached:
        text = f"{much} reached {' and '.join(reached)} here; the gate: {stage.outcome}"
        return f"{text}, because of {', '.join(stage.blocking)}" if stage.blocking else text
    if stage.outcome:
        return f"{much}; the gate: {stage.outcome}"
    if stage.held_out is not None:
        first, last = stage.held_out
        return f"{much} took the loss on held-out rows from {first:.3g} to {last:.3g} here; no gate has decided"
    return f"{much} were trained on here; no gate has decided" if stage.rows is not None else "no gate has decided"


def _telling(stage: PastStage, facts: Facts) -> list[PrecedentScore]:
    """Return the evals to quote: those that the brief names, that gate, or that are lost; three at most."""
    scored = [score for score in stage.scores if score.role != "domain"]
    wanted = [score for score in scored if _named(facts, score.name)]
    lost = [score for score in scored if score.name in stage.blocking or score.verdict == "regressed"]
    gating = [score for score in scored if score.role in ("eval", "safety")]
    return list({score.name: score for score in (*wanted, *lost, *gating)}.values())[:3]


def _reached(score: PrecedentScore) -> str:
    change = f"{score.difference:+.3g}, {score.low:+.3g} to {score.high:+.3g}, {score.items:,} items"
    if score.before is None or score.after is None:
        return f"{score.name} ({change})"
    return f"{score.after:.3g} of {score.name}, from {score.before:.3g} ({change})"


def _taken_from(run: str, facts: Facts, advice: Advice, before: Advice | None) -> Iterator[str]:
    """Yield the facts that were taken from a run, and the answer without them where it is another."""
    names = [e.field for e in facts.evidence if e.place == f"{PLACE}{run}"]
    if not names:
        return
    listed = ", ".join(f"{name}={_value(facts, name)}" for name in dict.fromkeys(names))
    yield f"taken from it: {listed}"
    if before is not None and (other := _otherwise(advice, before)):
        yield other


def _value(facts: Facts, name: str) -> str:
    value = next(e.value for e in facts.evidence if e.field == name and from_history(e))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _otherwise(advice: Advice, before: Advice) -> str:
    """Return the answer without the history where it differs, in words; else nothing."""
    answers = [(each.primary, [step.stage for step in each.plan]) for each in (advice, before)]
    if answers[0] == answers[1]:
        return ""
    steps = ", then ".join(answers[1][1])
    return f"without it the answer would be {before.primary}" + (f": {steps}" if steps else "")


def _measured_baseline(
    facts: Facts, advice: Advice, before: Advice | None, own: Sequence[PastStage]
) -> Iterator[Assumption]:
    """Yield a baseline that an eval run gave, with its source; what own runs gave is stated with them."""
    for e in facts.evidence:
        if e.field == "evals.baseline" and from_history(e) and e.place not in {f"{PLACE}{stage.run}" for stage in own}:
            effect = _otherwise(advice, before) if before is not None else ""
            yield Assumption(
                fact=f"evals.baseline = {e.value:g}",
                why=f"measured here ({e.place.removeprefix(PLACE)}): {e.quote}; the brief states none",
                effect=effect or "the answer would be the same without it",
            )


def _warned(failed: Sequence[PastStage], facts: Facts) -> Iterator[AdviceWarning]:
    if not failed:
        return
    outcome = {"regressed": "failed its gate", "unchanged": "improved nothing beyond its interval"}
    failures = [f"{stage.run} {outcome[verdict(stage, facts)]}: {describe(stage, facts)}" for stage in failed]
    yield AdviceWarning(id="precedent_failed", level="warning", text="; ".join(failures), rule="history")


def _took(shown: Sequence[tuple[PastStage, list[str]]]) -> str:
    times = []
    for stage, _ in shown:
        if stage.hours is not None:
            rows = "" if stage.rows is None else f" for {stage.rows:,} rows"
            spent = f"{stage.hours:.3g} hours" if stage.gpu_hours is None else f"{stage.gpu_hours:.3g} GPU-hours"
            times.append(f"{stage.run} took {spent}{rows} on {stage.hardware}")
    return f"measured here: {', '.join(times)}" if times else ""


def _hashed(before: str, precedents: Sequence[Precedent], unread: Sequence[str]) -> str:
    if not precedents and not unread:
        return before  # what was taken is in the facts, which are hashed already
    whole = "\n".join([before, *(precedent.model_dump_json() for precedent in precedents), *unread])
    return "sha256:" + hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# After the project's own gate


def _next(stage: PastStage, facts: Facts, advice: Advice) -> str:
    """Return what to do after the verdict on the project's own run."""
    found = verdict(stage, facts)
    if not stage.outcome:
        return f"no gate has decided on {stage.run} yet: measure it (align eval run, align gate) before it ships"
    if found == "improved":
        return f"the gate of {stage.run} passed: {_after_pass(stage, facts, advice)}"
    if found == "regressed":
        return f"the gate of {stage.run} failed: {_remedy(stage, facts)}"
    if found == "undecided" or stage.outcome == "inconclusive":
        more = f"about {stage.items_needed:,} items" if stage.items_needed else "more items"
        return f"the gate of {stage.run} could not tell ({stage.outcome}): measure on {more} before anything is changed"
    return f"the gate of {stage.run} passed, but nothing improved beyond its interval: {_instead(stage, advice)}"


def _after_pass(stage: PastStage, facts: Facts, advice: Advice) -> str:
    if stage.open_stages:
        following = ", ".join(stage.open_stages)
        return f"go on with {following} (align train {stage.directory}/run.yaml --resume)"
    score, wanted = _target_score(stage, facts), facts.project.evals.target
    short = wanted is not None and score is not None and score.after is not None and score.after < wanted
    steps = [step for step in advice.plan if step.stage in (*FITS_WEIGHTS, "best_of_n")]
    done = max((place for place, step in enumerate(steps) if step.stage == stage.stage), default=-1)
    left = [step for step in steps[done + 1 :] if short or not step.optional]
    if left and (short or wanted is None or score is None):
        needs = f", which needs {left[0].needs}" if left[0].needs else ""
        return f"the next stage of the plan is {left[0].stage}{needs}"
    if short:
        assert score is not None
        reached = f"{score.name} is at {score.after:.3g} of the {wanted:.3g} wanted"
        return f"{reached}; ship it if that is enough, {_more(advice, stage)}"
    return f"ship {stage.directory}/{stage.run.rpartition('/')[2]}/export"


def _more(advice: Advice, stage: PastStage) -> str:
    need = next((need for need in advice.data if need.unit == "rows" and need.need == stage.data), None)
    enough = need is not None and stage.rows is not None and stage.rows >= need.comfortable
    if need is None or enough:
        return "else look at the rows that it still gets wrong"
    return f"else gather more {stage.data.replace('_', ' ')}: {need.comfortable:,} are comfortable"


def _remedy(stage: PastStage, facts: Facts) -> str:
    """Return what to change where a domain or a safety eval was lost, or a check failed.

    General text against forgetting: Ibrahim 2403.08763. An adapter forgets less: Biderman 2405.09673.
    """
    units = {score.name: score for score in stage.scores}
    lost = [units[name] for name in stage.blocking if name in units]
    checks = [name for name in stage.blocking if name not in units]
    steps = []
    if lost:
        fell = " and ".join(
            f"{s.name} is down by {-s.difference:.3g} ({-s.high:.3g} to {-s.low:.3g}, {s.items:,} items)" for s in lost
        )
        meant = [score.name for score in stage.scores if score.high < 0 and _named(facts, score.name)]
        remedies = ["mix 1-5% rows of that kind and of general text into data.train"]
        if meant:  # no forgetting: what was learned is not what is measured
            remedies = [f"check its rows first (align data check), as {meant[0]} is what it was to improve"]
        if stage.learning_rate:
            remedies.append(f"halve optimizer.learning_rate ({stage.learning_rate:g} to {stage.learning_rate / 2:g})")
        if stage.tuning == "full":
            remedies.append("train an adapter (lora), which forgets less")
        if stage.stage in ONLINE:
            remedies.append("raise algorithm.beta")
        steps.append(f"{fell}. {'; '.join(_sentence(each) if not n else each for n, each in enumerate(remedies))}")
    if checks:
        steps.append(f"{', '.join(checks)} failed: look at the items that changed (align report --gate)")
    return f"{'. '.join(steps) or 'look at its report'}; then train and gate again"


def _instead(stage: PastStage, advice: Advice) -> str:
    stages = [step.stage for step in advice.plan if not step.optional]
    if stage.stage not in stages:
        return f"the rules now advise {', then '.join(stages) or 'to settle what is not known first'}"
    return (
        f"the facts still call for {stage.stage}, so change what it learns from and not its settings alone: "
        f"check the rows (align data check), and {_more(advice, stage).removeprefix('else ')}"
    )
