"""Let the rows of a block share each message to the process that renders templates.

What a row needs next depends on what came back before, so a row is a generator: it yields a request and is sent the
result. ``run_together`` takes all rows of a block a step at a time and fulfils their requests together. A request to
the renderer is a message to another process, and waiting for that costs more than rendering.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from align.core.data import template_sandbox
from align.core.data.template_sandbox import RenderFailure, RenderJob

MOST_CHARACTERS = 4_000_000
"""Most characters that one message to the renderer asks for, or those of one row."""


class RenderRequest(NamedTuple):
    """Texts of one row to render. Sent back: a list of texts and failures, or OSError or TimeoutError is raised.

    seconds, characters: limits of each job, as in ``template_sandbox.render``. size: characters in all jobs, roughly.
    """

    source: str
    jobs: Sequence[RenderJob]
    seconds: float
    characters: int
    size: int


Result = TypeVar("Result")
Steps = Generator[RenderRequest, list[str | RenderFailure], Result]
"""The steps of one row, and what they return."""


def run_together(rows: Sequence[Steps[Result]]) -> list[Result]:
    """Return what each row's steps return. An exception of one row ends them all."""
    results: dict[int, Result] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(rows)))
    while answers:
        requests: dict[int, RenderRequest] = {}
        for i, answer in answers.items():
            try:
                requests[i] = rows[i].throw(answer) if isinstance(answer, Exception) else rows[i].send(answer)
            except StopIteration as end:
                results[i] = end.value
        answers = _render(requests)
    return [results[i] for i in range(len(rows))]


def _render(requests: Mapping[int, RenderRequest]) -> dict[int, Any]:
    """Return the texts of each row, or the exception that rendering it raises."""
    answers: dict[int, Any] = {}
    sharing: dict[tuple[Any, ...], list[int]] = {}  # rows that can share a message, by what it has but once
    for i, request in requests.items():
        sharing.setdefault((request.source, request.seconds, request.characters), []).append(i)
    for rows in sharing.values():
        together, size = list[int](), 0
        for i in rows:
            if together and size + requests[i].size > MOST_CHARACTERS:
                answers |= _render_message(together, requests)
                together, size = [], 0
            together.append(i)
            size += requests[i].size
        answers |= _render_message(together, requests)
    return answers


def _render_message(rows: Sequence[int], requests: Mapping[int, RenderRequest]) -> dict[int, Any]:
    """Render rows in one message. Where that fails as a whole, each is rendered alone, to find whose fault it is."""
    first = requests[rows[0]]
    jobs = [job for i in rows for job in requests[i].jobs]
    try:
        texts = template_sandbox.render(first.source, jobs, first.seconds, first.characters)
    except (TimeoutError, OSError, RecursionError) as error:
        if len(rows) == 1:
            return {rows[0]: error}
    else:
        if len(rows) == 1 or not any(isinstance(text, RenderFailure) and text.of_all for text in texts):
            found = iter(texts)
            return {i: [next(found) for _ in requests[i].jobs] for i in rows}
    answers: dict[int, Any] = {}
    for i in rows:
        answers |= _render_message([i], requests)
    return answers
