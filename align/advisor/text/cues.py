"""Phrases -> facts: what is said without a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from align.advisor.facts import Evidence, Status
from align.advisor.text.lexicon import Match
from align.advisor.text.scene import Scene
from align.schemas.project import DataKind

WISH_REACH = 9
"""Words between a wish and the method wished for."""
KINDS = get_args(DataKind)


def cues(scene: Scene) -> Iterator[Evidence]:
    """Every fact that a phrase states. Fields that begin with ``_`` are hints, settled when all of the text is read."""
    for match in scene.matches:
        if match.label.startswith("cue:"):
            yield from _read(scene, match, match.label.removeprefix("cue:"))


def _read(scene: Scene, match: Match, cue: str) -> Iterator[Evidence]:
    status = scene.scopes.of(match.start, match.end)
    at = match.start, match.end
    field, _, value = cue.partition("=")
    if field.startswith("method."):
        yield from _method(scene, match, field.removeprefix("method."), status)
    elif field.startswith("tried."):
        if status != "negated":
            yield scene.evidence(field, True, *at, "tried")
    elif field == "untried":
        yield scene.evidence("tried.prompting", True, *at, "negated")
    elif field.startswith("data."):
        yield from _data(scene, match, field, status)
    elif value == "true":
        yield scene.evidence(field, True, *at, _plain(status))
    elif value:
        yield scene.evidence(field, value, *at, _plain(status))
    elif field.startswith("tuning."):
        yield scene.evidence("training.tuning", field.removeprefix("tuning."), *at, _plain(status))
    elif field != "wish":
        yield scene.evidence(f"_{field}", True, *at, status)


def _plain(status: Status) -> Status:
    """Trying, planning and hearsay do not make a need less real; only denial does."""
    return "negated" if status == "negated" else "asserted"


def _method(scene: Scene, match: Match, method: str, status: Status) -> Iterator[Evidence]:
    wished = any(
        w.end <= match.start <= w.end + WISH_REACH or match.end <= w.start <= match.end + 4
        for w in scene.named("cue:wish")
    )
    if status == "asserted" and not wished:
        return
    yield scene.evidence("requested", method, match.start, match.end, status)


def _data(scene: Scene, match: Match, field: str, status: Status) -> Iterator[Evidence]:
    kind = field.removeprefix("data.")
    at = match.start, match.end
    if kind not in KINDS:
        if status == "negated":
            yield scene.evidence("_no_data", True, *at)
    elif status == "negated":
        yield scene.evidence(field, False, *at)
    else:
        yield scene.evidence(field, True, *at, status if status == "planned" else "asserted")
