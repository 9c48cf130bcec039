"""Phrases -> facts that need no number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from align.advisor.project_facts import Evidence, Status
from align.advisor.text.lexicon import Match
from align.advisor.text.sentence_context import SentenceContext
from align.schemas.project import DataKind

WISH_REACH = 9
"""Most words between "we want" and the method wanted."""
KINDS = get_args(DataKind)
ONE_SIDED = frozenset(("knowledge.unseen_domain", "behaviour.prompt_falls_short", "behaviour.style_or_persona"))
"""Fields for which a nearby denial proves nothing: as a rule it is part of the phrase, or of another clause."""
ADJACENT = 2
"""Most words between a denial and personal data that is denied: "nobody may see other people's orders" denies none."""
HEAD = frozenset(("for", "on", "of", "with", "to", "using", "für", "mit", "auf", "para", "con"))
"""Words behind a method at the head of a sentence that make it a request: `GRPO for a poetry bot`."""


def cues(scene: SentenceContext) -> Iterator[Evidence]:
    """Yield every fact that a phrase states. Fields that begin with ``_`` are hints, resolved with the whole text."""
    for match in scene.matches:
        if match.label.startswith("cue:"):
            cue = match.label.removeprefix("cue:")
            if not _unreal(scene, match, cue):
                yield from _read(scene, match, cue)
    spans: list[int] = []
    for match in scene.named("rules:duty"):
        ours = any(free.start < match.end and match.start < free.end for free in scene.named("rules:free"))
        if not ours and (not spans or match.start >= spans[-1]):
            spans.append(match.end)
            yield scene.evidence("_duty", True, match.start, match.end)


def _unreal(scene: SentenceContext, match: Match, cue: str) -> bool:
    """Return whether a phrase belongs to another meaning: `the reference number of your enquiry` is no source."""
    others = scene.named(f"not:{cue.partition('=')[0]}")
    return any(other.start < match.end and match.start < other.end for other in others)


def _read(scene: SentenceContext, match: Match, cue: str) -> Iterator[Evidence]:
    status = scene.scopes.of(match.start, match.end)
    at = match.start, match.end
    field, _, value = cue.partition("=")
    if field.startswith("method."):
        yield from _method(scene, match, field.removeprefix("method."), status)
    elif field.startswith("tried."):
        if status != "negated":
            yield scene.evidence(field, True, *at, "tried")
    elif field == "constraints.regulated":
        denied = scene.scopes.negated(match.start, match.end, ADJACENT)
        yield scene.evidence(field, True, *at, "negated" if denied else "asserted")
    elif field == "untried":
        yield scene.evidence("tried.prompting", True, *at, "negated")
    elif field.startswith("data."):
        yield from _data(scene, match, field, status, value)
    elif value in ("true", "false"):
        if status == "negated" and field in ONE_SIDED:
            return
        yield scene.evidence(field, value == "true", *at, _plain(status))
    elif value:
        yield scene.evidence(field, value, *at, _plain(status))
    elif field.startswith("tuning."):
        yield scene.evidence("training.tuning", field.removeprefix("tuning."), *at, _plain(status))
    elif field != "wish":
        yield scene.evidence(f"_{field}", True, *at, status)


def _plain(status: Status) -> Status:
    """Return negated or asserted: a need that was tried, planned or reported by others is still a need."""
    return "negated" if status == "negated" else "asserted"


def _method(scene: SentenceContext, match: Match, method: str, status: Status) -> Iterator[Evidence]:
    wanted = any(
        w.end <= match.start <= w.end + WISH_REACH or match.end <= w.start <= match.end + 4
        for w in scene.named("cue:wish")
    )
    words = scene.sentence.words
    headed = match.start <= 2 and match.end < len(words) and words[match.end] in HEAD
    if status == "asserted" and not wanted and not headed:
        return
    yield scene.evidence("requested", method, match.start, match.end, status)


def _data(scene: SentenceContext, match: Match, field: str, status: Status, value: str) -> Iterator[Evidence]:
    kind = field.removeprefix("data.")
    at = match.start, match.end
    if value == "none" and status != "negated":
        return  # words too common to prove that data exist, but not to prove that there are none
    if kind not in KINDS:
        if status == "negated":
            yield scene.evidence("_no_data", True, *at)
    elif status == "negated":
        yield scene.evidence(field, False, *at)
    else:
        yield scene.evidence(field, True, *at, status if status == "planned" else "asserted")
