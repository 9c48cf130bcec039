"""Render one record with the chat template and turn it into token sequences with a mask of the scored tokens.

A conversation is rendered and tokenised as one text, as it will be when the model is used. The assistant's text is
found as character spans: by the template's ``{% generation %}`` marks, else by the conversation up to each turn, which
must be a prefix of the whole; that is rendered too, unless ``template_analysis`` proves what it would be. Spans become
tokens by the tokenizer's offsets, and every edge is checked: the tokens before it must be those that the model sees
when it is given that prompt alone. Text of the row that the template leaves out or changes is found by
``template_trace``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from align.core.data.batched_rendering import RenderRequest, Steps, run_together
from align.core.data.encode import MAX_CHARACTERS, Encoder, Guard, Span, UnusableRow
from align.core.data.template_analysis import TemplateForm, analyse
from align.core.data.template_checks import CATALOGUE, Note, TokenizationSettings, UncutSequence
from align.core.data.template_sandbox import RenderFailure, RenderJob
from align.core.data.template_trace import REASONING, Lost, Trace, Tracer, spans_in
from align.schemas.errors import AlignError
from align.schemas.records import Arguments, Message, Record

RENDER_SECONDS = 10.0
"""Limit of processor time for one conversation, because a template is a program and may never end."""

_PART = re.compile(r"""['"]type['"]: ?['"]text['"]""")
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RESERVED = {"messages", "tools", "chat_template", "add_generation_prompt"}
"""Variables that a row's chat_template_kwargs may not set, because the renderer sets them."""

_NONCE = secrets.token_hex(8)
_GENERATION = (f"\ufdd4{_NONCE}\ufdd5", f"\ufdd4{_NONCE}\ufdd6")
"""Markers written around text that a template marks as the assistant's. Random in each process, so no row has them."""
_TURN = f"\ufdd4{_NONCE}\ufdd7"
"""The marker written before each turn and after the last, where the template's form allows it."""
_MARKERS = re.compile("|".join((*_GENERATION, _TURN)))


def tokenize_record(
    record: Record, encoder: Encoder, settings: TokenizationSettings
) -> tuple[list[list[UncutSequence]], list[Note]]:
    """Return the uncut examples of one record, each a list of sequences, and the findings made on the way.

    text -> ``text``; prompt -> ``prompt``, nothing scored; completion, unpaired -> ``completion``; preference ->
    ``chosen``, ``rejected``. There is one example, or one per answer where the run file accepts turn-not-prefix. Raises
    UnusableRow for a row that cannot be used, and AlignError where the template exceeds its time limit.
    """
    (found,) = run_together([tokenizing(record, encoder, settings)])
    return found


def tokenizing(
    record: Record, encoder: Encoder, settings: TokenizationSettings
) -> Steps[tuple[list[list[UncutSequence]], list[Note]]]:
    """Do what ``tokenize_record`` does, in steps, so that many rows share each message to the renderer."""
    if record.kind not in settings.learns_from:
        raise UnusableRow("wrong-kind", f"a {record.kind} row")
    row = _Row(record, encoder, settings)
    examples: list[list[UncutSequence]]
    if record.kind == "text":
        text = row.hide(record.text)
        if record.conversational:
            examples = yield from row.conversation(text)
        else:
            examples = [[row.string("text", "", text)]]
    elif record.kind == "prompt":
        examples = [[(yield from row.prompt_alone())]]
    elif record.kind == "preference":
        chosen = yield from row.answered("chosen", row.prompt, row.hide(record.chosen))
        rejected = yield from row.answered("rejected", row.prompt, row.hide(record.rejected))
        examples = [[chosen, rejected]]
    else:
        examples = [[(yield from row.answered("completion", row.prompt, row.hide(record.completion)))]]
    row.note_special_tokens(record)
    return [[_scored(draft, settings) for draft in example] for example in examples], row.notes


def render_prompt(
    record: Record,
    encoder: Encoder,
    settings: TokenizationSettings,
    *,
    added: Sequence[Message] = (),
    opens: bool = False,
) -> str:
    """Return a prompt of messages as the chat template writes it, followed by the messages ``added``.

    opens: append the generation prompt. Raises as ``tokenize_record`` does.
    """
    row = _Row(record, encoder, settings)
    (rendered,) = run_together([row.render([*row.prompt, *added], prompt=opens)])
    return rendered.text


def _scored(draft: UncutSequence, settings: TokenizationSettings) -> UncutSequence:
    """Return the sequence with the algorithm's scored mask: a reward model scores the last token alone."""
    scored = np.arange(len(draft.scored)) == len(draft.scored) - 1 if settings.reward else draft.scored
    # Nothing predicts the first token, so it never carries loss.
    return draft._replace(scored=scored & (np.arange(len(scored)) > 0))


class _Piece(NamedTuple):
    """A span of characters that is learned, and its weight in the loss."""

    start: int
    end: int
    weight: float = 1.0


class _Rendered(NamedTuple):
    """A conversation as its template writes it, and a trace of the row's strings in it.

    messages: in the form that the template accepts. weights: the loss weight of each message. views: the renderings of
    shorter prefixes, keyed by (number of messages, with a generation prompt).
    """

    messages: list[Message]
    weights: list[float]
    text: str
    trace: Trace
    views: dict[tuple[int, bool], str | RenderFailure]

    def view(self, upto: int, prompt: bool) -> str:
        """Return the rendering of the first ``upto`` messages. Raises UnusableRow where the template rejects them."""
        found = self.views[upto, prompt]
        if isinstance(found, RenderFailure):
            raise UnusableRow("template-failed", found.why)
        return found

    def role(self, i: int) -> str:
        return str(self.messages[i].get("role"))


class _Markers(NamedTuple):
    """The markers of one rendering, taken out of it.

    spans: between generation markers; None where they do not match. turns: the start of each turn, and the end of the
    last.
    """

    text: str
    spans: list[Span] | None
    turns: list[int]

    @classmethod
    def taken_from(cls, written: str) -> _Markers:
        """Return the markers in a template's output, and the output without them."""
        pieces, last, length = list[str](), 0, 0
        spans, starts, turns = list[Span](), list[int](), list[int]()
        matched = True
        for marker in _MARKERS.finditer(written):
            pieces.append(written[last : marker.start()])
            length += marker.start() - last
            last = marker.end()
            if marker[0] == _TURN:
                turns.append(length)
            elif marker[0] == _GENERATION[0]:
                starts.append(length)
            elif starts:
                spans.append((starts.pop(), length))
            else:
                matched = False
        pieces.append(written[last:])
        return cls("".join(pieces), sorted(spans) if matched and not starts else None, turns)

    def view(self, view: tuple[int, bool], messages: int, tail: str) -> str:
        """Return the rendering of the first ``upto`` of the ``messages``. tail: the generation prompt."""
        upto, opens = view
        return self.text[: self.turns[upto - self.before_loop(messages)]] + (
            tail if opens else self.text[self.turns[-1] :]
        )

    def before_loop(self, messages: int) -> int:
        """Return how many of the ``messages`` are no turns: a template may write the first one before its loop."""
        return messages - (len(self.turns) - 1)


def _is_inside(positions: Sequence[int], span: Span) -> bool:
    """Return whether one of a message's positions lies in a span; a position is after a character of the message."""
    start, end = span
    return any(start < position <= end for position in positions)


class _Row:
    """A record being rendered and tokenised: its text with special tokens hidden, and the notes made so far."""

    def __init__(self, record: Record, encoder: Encoder, settings: TokenizationSettings) -> None:
        self.encoder, self.settings, self.where = encoder, settings, record.source
        self.notes: list[Note] = []
        if reserved := _RESERVED & record.chat_template_kwargs.keys():
            raise UnusableRow("template-failed", f"chat_template_kwargs may not set {', '.join(sorted(reserved))}")
        spelled_out = settings.special_tokens
        if "special-token-in-text" in settings.allow and not record.conversational:
            spelled_out = frozenset(encoder.special)
        self.guard = Guard(encoder, spelled_out)
        self.tools = self.guard.hide(record.tools)
        self.variables = encoder.variables | self.guard.hide(record.chat_template_kwargs)
        self.prompt = self.guard.hide(record.prompt)

    @cached_property
    def source(self) -> str:
        """The chat template's source. Raises UnusableRow where there is none."""
        return self.encoder.template(self.tools)

    @cached_property
    def marked(self) -> bool:
        """True if the template has ``{% generation %}`` marks around the assistant's text."""
        return _MARKS.search(self.source) is not None

    def note(self, finding: str, detail: str) -> None:
        """Record an error of this row. Raises UnusableRow unless the run file accepts that finding."""
        if finding not in self.settings.allow:
            raise UnusableRow(finding, detail)
        self.notes.append(Note(finding, detail))

    def note_special_tokens(self, record: Record) -> None:
        """Record the special tokens that the row spells.

        In messages of users and tools such a spelling is text. In the assistant's messages and in plain strings the
        model's format may be meant: that is ``special-token-unclear``, except for tokens that only ever begin or end a
        text (bos, eos, pad, unk).
        """
        if self.guard.kept:
            self.notes.append(Note("special-token-meant", " ".join(self.guard.kept)))
        if not self.guard.found:
            return
        own = Guard(self.encoder, self.settings.special_tokens)
        for part in (record.text, record.prompt, record.completion, record.chosen, record.rejected):
            if isinstance(part, str):
                own.hide(part)
            elif part is not None:
                own.hide([message for message in part if message.get("role") == "assistant"])
        unclear = own.found if set(own.found) - self.encoder.edges else []
        if unclear:
            self.notes.append(Note("special-token-unclear", " ".join(unclear)))
        if text := [token for token in self.guard.found if token not in unclear]:
            self.notes.append(Note("special-token-in-text", " ".join(text)))

    def hide(self, content: Any) -> Any:
        """Return content of the row with its special tokens hidden."""
        if isinstance(content, str):  # a string ends with eos anyway, so one that the row spells out there is dropped
            content = content.removesuffix(self.encoder.eos)
        return self.guard.hide(content)

    def string(self, role: str, prompt: str, answer: Any) -> UncutSequence:
        """Return the sequence of a plain text, or of a prompt and the answer that continues it.

        It starts with the tokenizer's own prefix (bos, or nothing) and ends with one eos.
        """
        if not isinstance(answer, str) or not isinstance(prompt, str):
            raise UnusableRow("wrong-kind", "prompt and answer are not both strings, or not both messages")
        eos = self.encoder.eos_id
        if eos is None:
            self.note("no-eos", "")
        given = 0  # tokens of the prompt, which are not scored
        prefix = self.encoder.prefix
        if prompt:
            # Tokenised as one text: apart, prompt and answer could have other tokens where they meet.
            text, spans = self.guard.reveal(prompt + answer, [(len(prompt), len(prompt + answer))])
            ids, [(start, _)] = self.tokens(text, spans)
            if not self.settings.scores_prompt:
                given = len(prefix) + start
        else:
            ids, _ = self.tokens(*self.guard.reveal(answer))
        end = [] if eos is None else [eos]
        ids = np.concatenate([prefix, ids, end]).astype(np.int32)
        return UncutSequence(role, ids, np.arange(len(ids)) >= given)

    def prompt_alone(self) -> Steps[UncutSequence]:
        """Return the sequence of a prompt that the model is to answer, with nothing scored."""
        if isinstance(self.prompt, str):
            ids, _ = self.tokens(*self.guard.reveal(self.prompt))
            ids = np.concatenate([self.encoder.prefix, ids]).astype(np.int32)
        else:
            rendered = yield from self.render(self.prompt or [], prompt=True)
            self.note_lost(rendered, learned_from=len(rendered.messages))
            ids, _ = self.tokens(*self.guard.reveal(rendered.text))
        if not len(ids):
            raise UnusableRow("wrong-kind", "an empty prompt")
        return UncutSequence("prompt", ids, np.zeros(len(ids), dtype=bool))

    def conversation(self, messages: list[Message]) -> Steps[list[list[UncutSequence]]]:
        """Return the examples of a conversation: the assistant's turns are scored; for pretraining, everything."""
        answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if self.settings.scores_prompt:
            weighed = [i for i, message in enumerate(messages) if _weight(message) != 1]
            before = [(i, False) for i in weighed]
            after = [(i + 1, False) for i in weighed]
            rendered = yield from self.render(messages, [*before, *after])
            self.note_lost(rendered)
            pieces = self.everything(rendered, weighed)
            return [[self.sequence("text", rendered.text, pieces)]]
        rendered = yield from self.render(messages, [] if self.marked else _turn_views(answers))
        try:
            yield from self.refuse_changed_turns(messages, rendered)
            spans = yield from self.spans(rendered, answers)
        except UnusableRow as refusal:
            # Accepted by the run file: then each turn is an example of its own, after the turns before it.
            self.note(refusal.finding, refusal.detail)
            examples = []
            for i in answers:
                if rendered.weights[i]:
                    turn = yield from self.answered("text", messages[:i], messages[i : i + 1], again=True)
                    examples.append([turn])
            return examples
        self.note_lost(rendered)
        given = any(message.get("role") != "assistant" for message in messages)
        return [[self.sequence("text", rendered.text, spans, given=given)]]

    def answered(self, role: str, prompt: Any, answer: Any, again: bool = False) -> Steps[UncutSequence]:
        """Return the sequence of a prompt and an answer, of which the answer's assistant messages are scored.

        again: the prompt is part of a conversation whose warnings were recorded before.
        """
        if not (isinstance(answer, list) and answer) or isinstance(prompt, str):
            return self.string(role, prompt or "", answer)
        prompt = prompt or []
        first, messages = len(prompt), [*prompt, *answer]
        turns = [i for i in range(first, len(messages)) if messages[i].get("role") == "assistant"]
        # One span from the prompt to the end would also score tool results and messages of weight 0.
        by_turn = len(turns) < len(answer) or any(_weight(messages[i]) != 1 for i in turns)
        views = [(first, first in turns)]
        if by_turn and not self.marked:
            views += _turn_views(turns)
        rendered = yield from self.render(messages, views)
        self.note_lost(rendered, first, again)
        text = rendered.text
        if self.settings.reward:
            return self.sequence(role, text, [])
        if self.settings.scores_prompt:
            return self.sequence(role, text, [_Piece(0, len(text))])
        start = yield from self.answer_start(rendered, first, text)
        is_prefix = True
        if start is None:
            head = rendered.view(first, first in turns)
            start = common_length(head, text)
            is_prefix = start == len(head)
            if not is_prefix:
                self.note("prompt-not-prefix", f"{head[start:][:40]!r} alone, {text[start:][:40]!r} with an answer")
        pieces = (yield from self.spans(rendered, turns)) if by_turn else [_Piece(start, len(text))]
        learned = [_Piece(max(a, start), b, weight) for a, b, weight in pieces if b > start]
        # Where the prompt alone is no prefix, the edge after it cannot be that of a prompt: this was just recorded.
        return self.sequence(role, text, learned, check=by_turn or is_prefix)

    def spans(self, rendered: _Rendered, answers: Sequence[int]) -> Steps[list[_Piece]]:
        """Return the learned spans of the messages ``answers``, by the template's own marks where it has them."""
        if not self.settings.weighs:
            for i in answers:
                if rendered.weights[i] not in (0, 1):
                    raise UnusableRow("fractional-weight", f"message {i + 1} has weight {rendered.weights[i]:g}")
        if not self.marked:
            turns = yield from self.turns(rendered, answers)
            weighed = [_Piece(*span, rendered.weights[i]) for i, span in zip(answers, turns, strict=True)]
            return [piece for piece in weighed if piece.weight]
        marked = rendered.trace.spans or []
        for i, positions in rendered.trace.places.items():
            if i < 0 or rendered.role(i) == "assistant":
                continue
            if any(_is_inside(positions, span) for span in marked):
                self.note("full-mask", f"message {i + 1} ({rendered.role(i)})")
                break
        if all(weight == 1 for weight in rendered.weights):
            return [_Piece(*span) for span in marked]
        weighed = [_Piece(*span, self.weight(rendered, span)) for span in marked]
        return [piece for piece in weighed if piece.weight]

    def weight(self, rendered: _Rendered, span: Span) -> float:
        """Return the weight of the message that a template's marks enclose; or of the one before them."""
        positions = {i: found for i, found in rendered.trace.places.items() if i >= 0 and found}
        enclosed = {i for i, found in positions.items() if _is_inside(found, span)}
        if not enclosed:
            before = [i for i in positions if positions[i][0] < span[1]]
            enclosed = {max(before, key=lambda i: positions[i][0])} if before else set()
        weights = {rendered.weights[i] for i in enclosed}
        if len(weights) != 1:
            raise UnusableRow("template-failed", "the {% generation %} marks do not show which message they enclose")
        return weights.pop()

    def turns(self, rendered: _Rendered, answers: Sequence[int]) -> Steps[list[Span]]:
        """Return the span of each of the messages ``answers`` in the text, with the token that ends the turn.

        A turn starts where its prompt ends, and ends where the conversation up to and including it ends; both must be
        prefixes of the whole. Whitespace that a template puts after the end-of-turn token is not included, because
        generation stops at the token.
        """
        spans = []
        for i in answers:
            try:
                tail = self.conversation_to(rendered, i)
                start = yield from self.answer_start(rendered, i, tail)
                head = tail[:start] if start is not None else rendered.view(i, True)
            except UnusableRow as refusal:
                raise UnusableRow("turn-not-prefix", f"turn {i + 1}: {refusal.detail}") from None
            if not (rendered.text.startswith(tail) and tail.startswith(head)):
                raise UnusableRow("turn-not-prefix", f"turn {i + 1}")
            ends = [match.end() for match in self.encoder.special_token_pattern.finditer(tail, len(head))]
            end = len(tail)
            if ends and not tail[ends[-1] :].strip():
                end = ends[-1]
            spans.append((len(head), end))
        return spans

    def conversation_to(self, rendered: _Rendered, i: int) -> str:
        """Return the text of the conversation up to and including message ``i``."""
        tail = rendered.views[i + 1, False]
        if isinstance(tail, RenderFailure) and self.opens(rendered, i):  # many templates require a user message
            own, following = rendered.trace.places.get(i), rendered.trace.places.get(i + 1)
            end = self.encoder.special_token_pattern.search(rendered.text, own[-1]) if own else None
            if end and (not following or end.end() <= following[0]):
                return rendered.text[: end.end()]
        tail = rendered.view(i + 1, False)
        if not rendered.text.startswith(tail):
            tail = tail.removesuffix(self.encoder.eos)  # which some templates write after the last message
        return tail

    def opens(self, rendered: _Rendered, i: int) -> bool:
        """True if only system messages come before message ``i``."""
        return all(rendered.role(earlier) in ("system", "developer") for earlier in range(i))

    def answer_start(self, rendered: _Rendered, i: int, text: str) -> Steps[int | None]:
        """Return where message ``i`` begins in ``text`` if it opens the conversation; None for one that answers.

        Without a user message many templates refuse to render a prompt, so its end cannot serve as the start. The
        message then begins after the header that the template puts before every answer, found by a probe.
        """
        if not self.opens(rendered, i):
            return None
        head = rendered.views.get((i, True))
        if i and isinstance(head, str) and text.startswith(head):
            return len(head)
        probe = [{"role": "user", "content": "x"}]
        alone, prompted = yield from self._texts([(probe, self.tools, False), (probe, self.tools, True)])
        if isinstance(alone, str) and isinstance(prompted, str):
            header = prompted[common_length(alone, prompted) :]
            positions = rendered.trace.places.get(i) or [len(text)]
            at = text.rfind(header, 0, positions[0])
            if header and at >= 0:
                return at + len(header)
        raise UnusableRow("prompt-not-prefix", f"where message {i + 1}, which opens the conversation, begins")

    def refuse_changed_turns(self, messages: list[Message], rendered: _Rendered) -> Steps[None]:
        """Raise UnusableRow for a turn that loses text once more turns follow it."""
        if not self.marked:  # the prefix checks of ``turns`` find such a turn
            return
        for lost in rendered.trace.lost:
            i = lost.message
            if not 0 <= i < len(rendered.messages) - 1 or rendered.role(i) != "assistant":
                continue
            alone_rendered = yield from self.render(messages[: i + 1])
            alone = {(one.message, one.field) for one in alone_rendered.trace.lost}
            if (i, lost.field) not in alone:
                raise UnusableRow("turn-not-prefix", f"turn {i + 1} without {self._describe(rendered, lost)}")

    def everything(self, rendered: _Rendered, weighed: Sequence[int]) -> list[_Piece]:
        """Return the whole text as pieces: the messages ``weighed`` with their own weights, the rest with 1."""
        pieces, end = list[_Piece](), 0
        for i in weighed:
            head, tail = rendered.view(i, False) if i else "", rendered.view(i + 1, False)
            if not (rendered.text.startswith(tail) and tail.startswith(head)):
                raise UnusableRow("turn-not-prefix", f"turn {i + 1}")
            pieces += (_Piece(end, len(head)), _Piece(len(head), len(tail), rendered.weights[i]))
            end = len(tail)
        pieces.append(_Piece(end, len(rendered.text)))
        return [piece for piece in pieces if piece.weight]

    def note_lost(self, rendered: _Rendered, learned_from: int = 0, again: bool = False) -> None:
        """Record text of the row that the template leaves out.

        learned_from: the first message that is learned. Before it the assistant's reasoning may be missing (a warning),
        since a deployed model does not see it either; any other missing text is an error. again: leave out warnings.
        """
        found: dict[str, list[Lost]] = {
            "text-lost": [],
            "reasoning-lost": [],
            "history-dropped": [],
            "tools-dropped": [],
        }
        for lost in rendered.trace.lost:
            if lost.message < 0:
                found["tools-dropped"].append(lost)
            elif lost.reasoning:
                earlier = lost.message < learned_from and rendered.role(lost.message) == "assistant"
                found["history-dropped" if earlier else "reasoning-lost"].append(lost)
            else:
                found["text-lost"].append(lost)
        for name, some in found.items():
            if not some:
                continue
            more = f" and {len(some) - 1} more" if len(some) > 1 else ""
            detail = self._describe(rendered, some[0]) + more
            if CATALOGUE[name].level == "error":
                self.note(name, detail)
            elif not again:
                self.notes.append(Note(name, detail))

    def _describe(self, rendered: _Rendered, lost: Lost) -> str:
        """Return the place and the text: ``message 2 (assistant), tool_calls[0].function.name: 'get_weather'``."""
        where = f"message {lost.message + 1} ({rendered.role(lost.message)}), " if lost.message >= 0 else ""
        text = self.guard.shown(lost.text)
        return f"{where}{lost.field}: {text[:40] + '...' * (len(text) > 40)!r}"

    def render(
        self, messages: Sequence[Message], views: Sequence[tuple[int, bool]] = (), prompt: bool = False
    ) -> Steps[_Rendered]:
        """Return the conversation as one text, with its ``views``.

        Templates expect different forms of the same message (``forms``): the first form that loses nothing is taken,
        else the one that loses least. Raises UnusableRow where the template rejects all of them.
        """
        weights = [_weight(message) for message in messages]
        best: _Rendered | None = None
        failed: RenderFailure | None = None
        # A template made for images reads content as a list of parts only. One made for text writes such a list out as
        # Python or JSON, so this form counts only where strings lose text, and where no list is written out.
        for in_parts in (False, True):
            if in_parts and best is not None and not any(lost.field == "content" for lost in best.trace.lost):
                break
            for form in forms(_in_parts(messages) if in_parts else messages, self.source):
                rendered = yield from self._try(form, weights, views, prompt)
                if isinstance(rendered, RenderFailure):
                    failed = failed or rendered
                elif in_parts and _spells_parts(rendered.text, messages):
                    continue
                elif best is None or len(_parts(rendered)) < len(_parts(best)):
                    best = rendered
                if best is not None and not best.trace.lost:
                    return best
        if best is None:
            raise UnusableRow("template-failed", failed.why if failed else "")
        return best

    def _try(
        self, form: list[Message], weights: list[float], views: Sequence[tuple[int, bool]], prompt: bool
    ) -> Steps[_Rendered | RenderFailure]:
        """Render one form of the row and its views.

        One rendering is enough where the template's form (``template_analysis``) proves that markers in it change
        nothing and where the turns are. The row is rendered a second time, with marks in its strings, unless the plain
        text already shows that nothing is lost. Whatever is sure to be needed goes to the renderer in one request.
        """
        tracer = Tracer(self.source, form, self.tools, self.variables)
        template = analyse(self.source)
        tail = self._tail(template) if template.covers(form, self.tools) and views and not prompt else None
        rendered_views = [view for view in views if tail is None or view[0] == 0]
        jobs: list[tuple[Sequence[Message], Any, bool]] = [(form, self.tools, prompt)]
        jobs += [(form[:upto], self.tools, opens) for upto, opens in rendered_views]
        in_one = tracer.plain and template.marks_are_output
        if not tracer.plain:
            jobs.append((*tracer.traced, prompt))
        elif self.marked and not in_one:
            jobs.append(jobs[0])
        text, *rest = yield from self._texts(
            jobs, 0 if in_one else len(jobs) - 1, None if tail is None else template.loop
        )
        if isinstance(text, RenderFailure):
            return text
        marks = _Markers.taken_from(text)
        if tail is not None and marks.before_loop(len(form)) not in (0, 1):
            # The loop is over a list that no branch has assigned: such a template is rendered turn by turn from now on.
            self.encoder.tails[self.source] = None
            return (yield from self._try(form, weights, views, prompt))
        text = marks.text
        trace = tracer.trace_plain(text)
        if trace is None:
            traced = rest[-1] if not tracer.plain else None
            if traced is None:
                (traced,) = yield from self._texts([(*tracer.traced, prompt)], marked=0)
            trace = tracer.read(text, traced, _GENERATION)
        if self.marked and trace.spans is None:
            if in_one:
                spans = marks.spans
            elif tracer.plain:
                spans = spans_in(text, rest[-1], _GENERATION)
            else:
                (spanned,) = yield from self._texts(jobs[:1], marked=0)
                spans = spans_in(text, spanned, _GENERATION)
            if spans is None:
                return RenderFailure("its {% generation %} marks change what it writes")
            trace = trace._replace(spans=spans)
        seen = dict(zip(rendered_views, rest, strict=False))
        if tail is not None:
            seen |= {view: marks.view(view, len(form), tail) for view in views if view not in rendered_views}
        return _Rendered(form, weights, text, trace, seen)

    def _tail(self, template: TemplateForm) -> str | None:
        """Return the generation prompt of a template whose form is proved; None where this row may have its own."""
        if self.variables != self.encoder.variables:
            return None
        if self.source not in self.encoder.tails:  # once for all rows: it depends on nothing of theirs
            probe = self._texts([([{"role": "user", "content": "x"}], None, True)], loop=template.loop)
            ((text,),) = run_together([probe])
            self.encoder.tails[self.source] = text.rpartition(_TURN)[2] if isinstance(text, str) else None
        return self.encoder.tails[self.source]

    def _texts(
        self,
        jobs: Sequence[tuple[Sequence[Message], Any, bool]],
        marked: int | None = None,
        loop: int | None = None,
    ) -> Steps[list[str | RenderFailure]]:
        """Render jobs of (messages, tools, with a generation prompt).

        marked: the job that gets generation markers. loop: the loop in which the first job gets markers of its turns.
        """
        requests = []
        for number, (messages, tools, prompt) in enumerate(jobs):
            variables = {"documents": None, **self.variables, "messages": messages, "tools": tools}
            variables["add_generation_prompt"] = prompt
            markers = _GENERATION if self.marked and number == marked else ("", "")
            requests.append(RenderJob(variables, markers, *((loop, _TURN) if number == 0 and loop is not None else ())))
        size = len(jobs) * self.guard.characters
        try:
            texts: list[str | RenderFailure]
            texts = yield RenderRequest(self.source, requests, RENDER_SECONDS, MAX_CHARACTERS, size)
        except TimeoutError as error:  # stops the run: were it a bad row, each further row might cost the whole limit
            fix = "give another template in model.chat_template, or leave the row out"
            raise AlignError(f"the chat template {error}", fix, where=self.where) from None
        except OSError as error:
            what = f"the process that renders chat templates does not start: {error.strerror}"
            raise AlignError(what, "free memory or end other processes, then run again") from None
        return texts

    def sequence(
        self, role: str, text: str, pieces: Sequence[_Piece], given: bool = False, check: bool = True
    ) -> UncutSequence:
        """Return the tokens of a rendered conversation, with those in ``pieces`` scored."""
        pieces = _joined(pieces)
        revealed, spans = self.guard.reveal(text, [(piece.start, piece.end) for piece in pieces])
        ids, answers = self.tokens(revealed, spans, check)
        scored = np.zeros(len(ids), dtype=bool)
        for start, end in answers:
            scored[start:end] = True
        if all(piece.weight == 1 for piece in pieces):
            return UncutSequence(role, ids, scored, answers, given)
        weights = np.ones(len(ids), dtype=np.float32)
        for (start, end), piece in zip(answers, pieces, strict=True):
            weights[start:end] = piece.weight
        return UncutSequence(role, ids, scored, answers, given, None if (weights == 1).all() else weights)

    def tokens(self, text: str, spans: Sequence[Span], check: bool = True) -> tuple[Any, list[Span]]:
        """Return token ids [T] and ``spans`` in tokens.

        check: report a token that crosses the edge of a span (``boundary-merge``).
        """
        encoded = self.encoder.find_spans(text, spans, self.guard.active)
        if encoded.merged and check and not self.settings.reward:
            self.note("boundary-merge", encoded.merged)
            encoded = self.encoder.encode_apart(text, spans, self.guard.active)
        return encoded.ids, encoded.spans


def forms(messages: Sequence[Message], source: str) -> Iterator[list[Message]]:
    """Yield equivalent forms of a conversation, the most usual first.

    They differ in the name of the reasoning field (among those that the template ``source`` mentions), in the content
    of a turn that has only calls ("" or null), in a call's arguments (an object or its JSON) and in calls being bare
    or wrapped as OpenAI does.
    """
    if all(message.get("content") and message.keys() == {"role", "content"} for message in messages):
        yield [dict(message) for message in messages]  # as nearly all conversations are
        return
    base = [_bare(message) for message in messages]
    calls = [call for message in base for call in message.get("tool_calls") or ()]
    silent = any(message.get("role") == "assistant" and not message.get("content") for message in base)
    names = {key for message in base for key in REASONING if key in message}
    bare = any("function" not in call or "type" not in call for call in calls)
    other_names = [name for name in REASONING if names and {name} != names and name in source]
    ways = product(
        [None, *other_names],
        ["", None] if silent else [""],
        [False, True] if calls else [False],
        [False, True] if bare else [False],
    )
    for name, empty, as_string, wrapped in ways:
        form = []
        for each in base:
            message = dict(each)
            if message.get("role") == "assistant" and not message.get("content"):
                message["content"] = empty
            if "tool_calls" in message:
                message["tool_calls"] = [_call(call, as_string, wrapped) for call in message["tool_calls"]]
            own = next((key for key in REASONING if key in message), None)
            if name and own:
                message = {name if key == own else key: value for key, value in message.items()}
            form.append(message)
        yield form


def _turn_views(answers: Sequence[int]) -> list[tuple[int, bool]]:
    """Return the views that show where each of the messages ``answers`` begins and ends."""
    return [view for i in answers for view in ((i, True), (i + 1, False))]


def _parts(rendered: _Rendered) -> set[tuple[int, str]]:
    """Return the fields of which some text is lost."""
    return {lost.part for lost in rendered.trace.lost}


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with each text as a list of one part, which is OpenAI's other form of it."""
    return [
        {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content := message.get("content"), str) and content
        else dict(message)
        for message in messages
    ]


def _spells_parts(text: str, messages: Sequence[Message]) -> bool:
    """Return True if a list of parts is written out in the text, by the template and not by the row."""
    return _PART.search(text) is not None and _PART.search(str(messages)) is None


def _bare(message: Message) -> Message:
    """Return a message without its null fields, and without the fields that only align reads (weight, train)."""
    return {
        key: value
        for key, value in message.items()
        if value is not None and key not in ("weight", "train") and not (key == "tool_calls" and value == [])
    }


def _call(call: Any, as_string: bool, wrapped: bool) -> Any:
    """Return a tool call with its arguments as JSON or as an object, and if ``wrapped`` in OpenAI's form."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = {} if function.get("arguments") is None else function["arguments"]
    if isinstance(arguments, str) and not as_string:
        arguments = _object(arguments)
    elif as_string and not isinstance(arguments, str):
        # The row's own JSON where it has one, so that its spacing and escapes stay as they were written.
        text = arguments.text if isinstance(arguments, Arguments) else ""
        arguments = text or json.dumps(arguments, ensure_ascii=False)
    function = {**function, "arguments": arguments}
    if "function" in call:
        return {"type": "function", **call, "function": function} if wrapped else {**call, "function": function}
    if not wrapped:
        return function
    own = {key: function.pop(key) for key in ("id", "type") if key in function}
    return {"type": "function", **own, "function": function}


def _object(text: str) -> Any:
    """Return the object that a JSON text holds, else the text itself."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _weight(message: Message) -> float:
    """Return the loss weight of a message; 0 means that it is read and not learned."""
    if message.get("train") is False:
        return 0.0
    weight = message.get("weight")
    return 1.0 if weight is None else float(weight)


def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Return pieces in order and disjoint: touching ones of one weight are merged, empty ones dropped."""
    joined = list[_Piece]()
    for start, end, weight in sorted(pieces):
        last = joined[-1] if joined else _Piece(0, -1)
        if start <= last.end and weight == last.weight:
            joined[-1] = last._replace(end=max(end, last.end))
        elif max(start, last.end) < end:
            joined.append(_Piece(max(start, last.end), end, weight))
    return joined


def common_length(a: str, b: str) -> int:
    """Return how many characters two texts share at their start."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
