"""One record to token sequences: rendering, and which of the tokens are the assistant's.

A conversation is rendered and tokenised as one text, as it will be when the model is used. The assistant's words are
found as character spans: by the template's ``{% generation %}`` marks, else by rendering the conversation up to each
turn and checking that this is a prefix of the whole. Spans become tokens by the tokenizer's offsets, and every edge is
checked: the tokens before it must be those that the model sees when it is given that prompt alone.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers.utils.chat_template_utils import _compile_jinja_template  # the public one never stops writing

from align.core.data.doctor import Draft, Note, Settings
from align.core.data.encode import Encoder
from align.core.data.guard import MAX_CHARACTERS, Guard, Refusal, Span
from align.schemas.errors import AlignError
from align.schemas.records import Message, Record

RENDER_SECONDS = 10.0
"""Longest that a template may work on one conversation: it is a program, and may be made never to end."""

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RESERVED = {"messages", "tools", "chat_template", "add_generation_prompt"}
"""What a row's chat_template_kwargs may not set, being set already."""


def drafts(record: Record, encoder: Encoder, settings: Settings) -> tuple[list[list[Draft]], list[Note]]:
    """The uncut examples of one record, each a list of sequences, and what was noticed while making them.

    text -> ``text``; prompt -> ``prompt``, nothing scored; completion, unpaired -> ``completion``; preference ->
    ``chosen``, ``rejected``. One example, save where the run file accepts turn-not-prefix. Raises Refusal, and
    AlignError where the template does not end.
    """
    if record.kind not in settings.learns_from:
        raise Refusal("wrong-kind", f"a {record.kind} row")
    row = _Row(record, encoder, settings)
    if record.kind == "text":
        text = row.enter(record.text)
        examples = row.conversation(text) if record.conversational else [[row.string("text", "", text)]]
    elif record.kind == "prompt":
        examples = [[row.asked()]]
    elif record.kind == "preference":
        pair = {"chosen": record.chosen, "rejected": record.rejected}
        examples = [[row.answered(role, row.prompt, row.enter(answer)) for role, answer in pair.items()]]
    else:
        examples = [[row.answered("completion", row.prompt, row.enter(record.completion))]]
    if row.guard.found:
        row.notes.append(Note("special-token-in-text", row.guard.found[0]))
    return [[_scored(draft, settings) for draft in example] for example in examples], row.notes


def rendered(
    record: Record, encoder: Encoder, settings: Settings, *, added: Sequence[Message] = (), opens: bool = False
) -> str:
    """Return a prompt of messages as the chat template writes it, followed by the messages ``added``.

    opens: with the generation prompt at its end. Raises as ``drafts`` does.
    """
    row = _Row(record, encoder, settings)
    return row.render([*row.prompt, *added], prompt=opens)[0]


def _scored(draft: Draft, settings: Settings) -> Draft:
    """The scored mask as the algorithm wants it: the answers, everything, or the last token alone."""
    scored = np.ones_like(draft.scored) if settings.scores_prompt else draft.scored
    if settings.reward:
        scored = np.arange(len(scored)) == len(scored) - 1
    return draft._replace(scored=scored & (np.arange(len(scored)) > 0))


class _Row:
    """One record on its way through the template."""

    def __init__(self, record: Record, encoder: Encoder, settings: Settings) -> None:
        self.encoder, self.settings, self.source = encoder, settings, record.source
        self.notes: list[Note] = []
        if reserved := _RESERVED & record.chat_template_kwargs.keys():
            raise Refusal("template-failed", f"chat_template_kwargs may not set {', '.join(sorted(reserved))}")
        self.guard = Guard(encoder, "special-token-in-text" in settings.allow and not record.conversational)
        self.tools = self.guard.enter(record.tools)
        self.variables = encoder.variables | self.guard.enter(record.chat_template_kwargs)
        self.prompt = self.guard.enter(record.prompt)

    def note(self, finding: str, detail: str) -> None:
        """An error of this row: a refusal unless the run file accepts it."""
        if finding not in self.settings.allow:
            raise Refusal(finding, detail)
        self.notes.append(Note(finding, detail))

    def enter(self, said: Any) -> Any:
        """What the row says, its special tokens hidden; but eos at the very end of a string means just that."""
        return self.guard.enter(said.removesuffix(self.encoder.eos) if isinstance(said, str) else said)

    def string(self, role: str, prompt: str, answer: Any) -> Draft:
        """A text, or a prompt and the answer that goes on from it.

        First what the tokenizer puts before any text, last eos, once, whether or not the row spells it out.
        """
        if not isinstance(answer, str) or not isinstance(prompt, str):
            raise Refusal("wrong-kind", "prompt and answer are not both strings, or not both messages")
        eos = self.encoder.eos_id
        if eos is None:
            self.note("no-eos", "")
        if prompt:
            text, spans = self.guard.leave(prompt + answer, [(len(prompt), len(prompt + answer))])
            ids, [(start, _)] = self.tokens(text, spans)
        else:
            ids, start = self.encoder.encode(self.guard.leave(answer)[0], self.guard.active), 0
        front, end = self.encoder.prefix, [] if eos is None else [eos]
        ids = np.concatenate([front, ids, end]).astype(np.int32)
        return Draft(role, ids, np.arange(len(ids)) >= (len(front) + start if prompt else 0))

    def asked(self) -> Draft:
        """A prompt alone, as the model is given it to answer."""
        if isinstance(self.prompt, str):
            ids = self.encoder.encode(self.guard.leave(self.prompt)[0], self.guard.active)
            ids = np.concatenate([self.encoder.prefix, ids]).astype(np.int32)
        else:
            ids, _ = self.tokens(*self.guard.leave(self.render(self.prompt, prompt=True)[0], []))
        if not len(ids):
            raise Refusal("wrong-kind", "an empty prompt")
        return Draft("prompt", ids, np.zeros(len(ids), dtype=bool))

    def conversation(self, messages: list[Message]) -> list[list[Draft]]:
        """A whole conversation; the assistant's turns are scored."""
        text, marked = self.render(messages, marks=True)
        self.keeps(messages, text)
        spans = marked or []
        try:
            if marked is None and not self.settings.scores_prompt:
                spans = self.turns(messages, text)
        except Refusal as refusal:
            self.note(refusal.finding, refusal.detail)
            said = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
            return [[self.answered("text", messages[:i], messages[i : i + 1])] for i in said]
        given = any(message.get("role") != "assistant" for message in messages)
        return [[self.draft("text", text, spans, given=given)]]

    def answered(self, role: str, prompt: Any, answer: Any) -> Draft:
        """A prompt and an answer; what the answer adds is scored, except what others than the assistant say in it."""
        if not (isinstance(answer, list) and answer) or isinstance(prompt, str):
            return self.string(role, prompt or "", answer)
        prompt = prompt or []
        text, marked = self.render(prompt + answer, marks=True)
        self.keeps(answer, text)
        if self.settings.reward:
            return self.draft(role, text, [])
        head = self.render(prompt, prompt=answer[0].get("role") == "assistant")[0] if prompt else ""
        start = _common(head, text)
        if start < len(head):
            self.note("prompt-not-prefix", f"{head[start:][:40]!r} alone, {text[start:][:40]!r} with an answer")
        if all(message.get("role") == "assistant" for message in answer):
            return self.draft(role, text, [(start, len(text))], check=start == len(head))
        spans = self.turns(prompt + answer, text, len(prompt)) if marked is None else marked
        return self.draft(role, text, [(max(a, start), b) for a, b in spans if b > start])

    def turns(self, messages: list[Message], text: str, since: int = 0) -> list[Span]:
        """Where the assistant speaks in ``text``, from message ``since`` on, with the token that ends the turn.

        A turn starts where the prompt for it ends, and ends where the conversation up to it does; both must be prefixes
        of the whole. Whitespace that a template puts after the end-of-turn token is no part of it.
        """
        spans = []
        for i, message in enumerate(messages):
            if i < since or message.get("role") != "assistant":
                continue
            try:
                head, tail = self.render(messages[:i], prompt=True)[0], self.render(messages[: i + 1])[0]
            except Refusal as refusal:
                raise Refusal("turn-not-prefix", f"turn {i + 1}: {refusal.detail}") from None
            if not text.startswith(tail):  # some templates end whatever they write with eos
                tail = tail.removesuffix(self.encoder.eos)
            if not (text.startswith(tail) and tail.startswith(head)):
                raise Refusal("turn-not-prefix", f"turn {i + 1}")
            ends = [match.end() for match in self.encoder.spelt.finditer(tail, len(head))]
            spans.append((len(head), ends[-1] if ends and not tail[ends[-1] :].strip() else len(tail)))
        return spans

    def keeps(self, messages: list[Message], text: str) -> None:
        """Note where the template leaves out how an answer ends: a template made for images leaves out all strings."""
        for i, message in enumerate(messages, 1):
            if message.get("role") == "assistant" and isinstance(said := message.get("content"), str):
                end = said.rpartition(">")[2].strip()[-32:]  # thoughts in tags may well be left out
                if end not in text:
                    self.note("answer-lost", f"answer {i} ends {end!r}")

    def render(
        self, messages: list[Message], prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span] | None]:
        """The conversation as one text, and the spans that its template marks (None: it has no marks)."""
        source = self.encoder.template(self.tools)
        variables = {"documents": None, **self.variables, "messages": messages, "tools": self.tools}
        variables["add_generation_prompt"] = prompt
        blocks, spans, left = list[str](), list[Span](), MAX_CHARACTERS
        try:
            with deadline(RENDER_SECONDS):
                template = _compile_jinja_template(source)
                with template.environment.activate_tracker(blocks, spans):
                    for block in template.generate(variables):
                        blocks.append(block)
                        left -= len(block)
                        if left < 0:
                            raise ValueError(f"it writes more than {MAX_CHARACTERS:,} characters")
        except TimeoutError as error:  # at once: it may be so for every row
            mend = "give another template in model.chat_template, or leave the row out"
            raise AlignError(f"the chat template {error}", mend, where=self.source) from None
        except Exception as error:  # a template is a program that works on the row: anything may come out
            raise Refusal("template-failed", f"{type(error).__name__}: {error}"[:200]) from None
        return "".join(blocks), spans if marks and _MARKS.search(source) else None

    def draft(self, role: str, text: str, spans: Sequence[Span], given: bool = False, check: bool = True) -> Draft:
        """The tokens of a rendered conversation, those in ``spans`` scored."""
        ids, answers = self.tokens(*self.guard.leave(text, _joined(spans)), check)
        scored = np.zeros(len(ids), dtype=bool)
        for start, end in answers:
            scored[start:end] = True
        return Draft(role, ids, scored, answers, given)

    def tokens(self, text: str, spans: Sequence[Span], check: bool = True) -> tuple[Any, list[Span]]:
        """Token ids [T] and the spans in tokens."""
        encoded = self.encoder.encode_spans(text, spans, self.guard.active)
        if encoded.merged and check and not self.settings.reward:
            self.note("boundary-merge", encoded.merged)
            encoded = self.encoder.encode_apart(text, spans, self.guard.active)
        return encoded.ids, encoded.spans


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds. Only a process's main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """In order, with those that touch made one and empty ones left out."""
    joined = list[Span]()
    for a, b in sorted(spans):
        if joined and a <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(b, joined[-1][1]))
        elif a < b:
            joined.append((a, b))
    return joined


def _common(a: str, b: str) -> int:
    """Characters that two texts share at their start."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
