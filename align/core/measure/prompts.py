"""A question put in several ways: as it is, after worked examples, and under passages that may hold its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from align.core.inference.probe_material import Question, plain
from align.core.inference.sampler import as_message
from align.core.measure.retrieve import Retriever
from align.schemas.records import Content, Message, Record

FOUND = 5
"""Passages put before a question."""


def with_examples(record: Record, shown: Sequence[Question], fits: Callable[[Record], bool]) -> Record:
    """Worked examples first: as turns before the last question, or as text with a blank line between.

    As many as fit, those that come first staying.
    """
    return _most(record, len(shown), lambda n: _examples(record.prompt or "", shown[:n]), fits)


def with_passages(record: Record, retriever: Retriever, fits: Callable[[Record], bool]) -> Record:
    """The best passages that BM25 finds for the last question, before it; as many as fit, the best staying."""
    question = plain(record.prompt[-1:] if isinstance(record.prompt, list) else record.prompt)
    found = retriever.find(question, FOUND)
    return _most(record, len(found), lambda n: _under(record.prompt or "", question, found[:n]), fits)


def _most(record: Record, n: int, put: Callable[[int], Content], fits: Callable[[Record], bool]) -> Record:
    while n and not fits(replace(record, prompt=put(n))):
        n -= 1
    return replace(record, prompt=put(n)) if n else record


def _examples(prompt: Content, shown: Sequence[Question]) -> Content:
    if isinstance(prompt, str):
        return "\n\n".join([*(f"{plain(q.record.prompt)}{q.wanted}" for q in shown), prompt])
    turns = [
        message
        for q in shown
        for message in (*_without_system(as_message(q.record)), {"role": "assistant", "content": q.wanted})
    ]
    system = [message for message in prompt if message["role"] == "system"]
    return [*system, *turns, *(message for message in prompt if message["role"] != "system")]


def _without_system(record: Record) -> list[Message]:
    assert isinstance(record.prompt, list)
    return [message for message in record.prompt if message["role"] != "system"]


def _under(prompt: Content, question: str, passages: Sequence[str]) -> Content:
    text = "\n\n".join([*passages, question])
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]
