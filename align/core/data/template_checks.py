"""The template doctor: the faults possible between a row and the tokens that a model learns from, and their fixes.

It fails closed: an ``error`` stops a run before its first step unless the run file accepts it by id
(``data.allow: [boundary-merge]``). Findings are counted over all rows, with the first rows named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.records import Kind
from align.schemas.run import Data

if TYPE_CHECKING:
    from align.core.algorithm.contract import Algorithm
    from align.core.data.encode import Encoder, Span


# The catalogue: each finding's id, level, sentence, fix, and the effect of accepting it.


class CheckEntry(NamedTuple):
    """The meaning of a finding's id. accepted: align's treatment of such rows once the id is in ``data.allow``."""

    level: Literal["error", "warning"]
    what: str
    fix: str
    accepted: str


LEFT_OUT = "the rows are left out"
KEPT = "the rows are learned from as they are"

CATALOGUE: Mapping[str, CheckEntry] = {
    "wrong-kind": CheckEntry(
        "error",
        "the row holds nothing that this algorithm learns from",
        "choose an algorithm for such rows, or rename the columns with data.train[].columns",
        LEFT_OUT,
    ),
    "fractional-weight": CheckEntry(
        "error",
        "a message has a weight other than 0 and 1, and this algorithm compares whole answers",
        "give each message weight 0 (read, not learned) or 1 (learned); sft and pretrain take weights between them",
        LEFT_OUT,
    ),
    "bad-unicode": CheckEntry("error", "the text is not valid Unicode", "fix the text where it was written", LEFT_OUT),
    "text-too-long": CheckEntry(
        "error", "the text is too long to be tokenised", "split it into several rows", LEFT_OUT
    ),
    "no-chat-template": CheckEntry(
        "error",
        "the row is a conversation and the tokenizer has no chat template",
        "name a Jinja file in model.chat_template, or start from a model that has a template",
        LEFT_OUT,
    ),
    "no-eos": CheckEntry(
        "error",
        "the tokenizer has no eos token, so the model cannot learn where an answer ends",
        "set eos_token in the model's tokenizer_config.json",
        KEPT,
    ),
    "template-failed": CheckEntry(
        "error",
        "the chat template refuses the row",
        "change the row to what the template takes, or give another template in model.chat_template",
        LEFT_OUT,
    ),
    "prompt-not-prefix": CheckEntry(
        "error",
        "the chat template writes the prompt one way alone and another way when an answer follows, so the model would "
        "learn after other tokens than it will see",
        "use a template (model.chat_template) that writes a prompt the same way in both cases",
        "the answer starts where the two ways part, as in TRL",
    ),
    "turn-not-prefix": CheckEntry(
        "error",
        "the chat template writes this turn otherwise once more turns follow, so the assistant's own text there cannot "
        "be told apart from the rest",
        "put {% generation %} and {% endgeneration %} around the assistant's text in the template "
        "(model.chat_template)",
        "each answer becomes an example of its own, after the turns before it as the template then writes them",
    ),
    "text-lost": CheckEntry(
        "error",
        "the chat template leaves out text of the row, or changes it",
        "use a template (model.chat_template) that writes such a row whole, with its roles, its tool calls and content "
        "that is a string; or take the text out of the row",
        KEPT,
    ),
    "reasoning-lost": CheckEntry(
        "error",
        "the chat template leaves out the assistant's reasoning",
        "use a template (model.chat_template) that writes it, with the field's name that the template knows "
        "(reasoning_content, reasoning, thinking), or take it out of the row",
        KEPT,
    ),
    "boundary-merge": CheckEntry(
        "error",
        "the end of the prompt and the start of the answer merge into one token, which the model never sees when it "
        "is given the prompt alone",
        "end prompts without whitespace and begin answers with it (or neither)",
        "prompt and answer are tokenised apart",
    ),
    "double-bos": CheckEntry(
        "error",
        "the sequence starts with two beginning-of-text tokens",
        "take bos_token out of the chat template or out of the text",
        KEPT,
    ),
    "end-of-turn-untrained": CheckEntry(
        "error",
        "no token that ends a turn is learned at the end of the answer, so the model would never stop",
        "let the chat template close the assistant's turn with an end-of-turn token, before {% endgeneration %}",
        KEPT,
    ),
    "empty-mask": CheckEntry(
        "error", "no token of the row carries loss", "give it an assistant turn or an answer", LEFT_OUT
    ),
    "full-mask": CheckEntry(
        "error",
        "text of others than the assistant carries loss",
        "put {% generation %} and {% endgeneration %} around the assistant's text only",
        KEPT,
    ),
    "truncation": CheckEntry(
        "error",
        "longer than data.max_length",
        "raise data.max_length, or choose data.truncation_mode: drop, keep_start, keep_end (or split, for text)",
        "the rows are kept whole",
    ),
    "special-token-unclear": CheckEntry(
        "error",
        "the row spells a special token where the model's own format may be meant, in an assistant's message or in a "
        "string; it would be learned as ordinary text, not as that token",
        "name the tokens that are meant in data.special_tokens",
        "the spelling stays text",
    ),
    "special-token-in-text": CheckEntry(
        "warning",
        "the row's text spells a special token; it is learned as ordinary text, not as that token",
        "nothing need be done, unless the token is meant: then name it in data.special_tokens",
        "in rows that are strings every spelling becomes its token; in messages it stays text",
    ),
    "special-token-meant": CheckEntry(
        "warning",
        "the row spells special tokens that data.special_tokens names; they are learned as those tokens",
        "nothing need be done",
        KEPT,
    ),
    "end-of-turn-not-eos": CheckEntry(
        "warning",
        "answers end with another token than the tokenizer's eos",
        "see that the model's generation_config.json lists it in eos_token_id, or generation will not stop there",
        KEPT,
    ),
    "history-dropped": CheckEntry(
        "warning",
        "the chat template leaves the assistant's reasoning of earlier turns out of the prompt, as it does when the "
        "model is used",
        "nothing need be done, unless the model is to see it: then use another template (model.chat_template)",
        KEPT,
    ),
    "tools-dropped": CheckEntry(
        "warning",
        "the chat template does not write the row's tools, so the model does not see what it learns to call",
        "use a template (model.chat_template) that writes tools",
        KEPT,
    ),
    "identical-pair": CheckEntry(
        "warning", "the chosen and the rejected answer are the same tokens", "leave such pairs out", KEPT
    ),
    "eos-is-pad": CheckEntry(
        "warning",
        "the pad token is the eos token: align still learns it (padding is masked by position); other tools may not",
        "give the tokenizer a pad token of its own",
        KEPT,
    ),
    "template-dated": CheckEntry(
        "warning",
        "the chat template writes today's date into the prompt, so the same rows give other tokens on another day",
        "fix the date in the template, or in each row's chat_template_kwargs",
        KEPT,
    ),
}

TRUNCATED: Mapping[str, str] = {
    "drop": "longer than data.max_length: left out",
    "keep_start": "longer than data.max_length: the end is cut off, and with it the token that ends the answer",
    "keep_end": "longer than data.max_length: the start is cut off",
    "split": "longer than data.max_length: split into blocks",
}
"""The treatment of long rows that each ``data.truncation_mode`` chooses; truncation is then a warning."""

ROWS_NAMED = 5
"""Most rows that a finding names."""


@dataclass(frozen=True)
class TokenizationSettings:
    """The settings that decide how a record becomes an example, besides the tokenizer."""

    learns_from: tuple[Kind, ...]
    scores_prompt: bool
    reward: bool
    max_length: int
    truncation: str
    allow: frozenset[str]
    special_tokens: frozenset[str] = frozenset()
    """Special tokens that become tokens where a row's text contains them."""
    weighs: bool = False
    """True if messages may have weights other than 0 and 1."""

    @classmethod
    def of(cls, algorithm: Algorithm, data: Data) -> TokenizationSettings:
        """Return the settings of an algorithm and its data. Raises AlignError where they contradict each other."""
        problems = [
            Problem("data.allow", f"{name!r} is not a finding that can be accepted", did_you_mean(name, CATALOGUE))
            for name in data.allow
            if name not in CATALOGUE
        ]
        if data.truncation_mode == "split" and algorithm.learns_from != ("text",):
            fix = "choose drop, keep_start or keep_end"
            problems.append(Problem("data.truncation_mode", f"is split, but {algorithm.name} has whole answers", fix))
        if data.truncation_mode == "keep_start" and (
            algorithm.head == "reward" or algorithm.learns_from == ("prompt",)
        ):
            does = "scores the end of the sequence" if algorithm.head == "reward" else "answers the end of the prompt"
            what = f"is keep_start, but {algorithm.name} {does}"
            problems.append(Problem("data.truncation_mode", what, "choose drop or keep_end"))
        if problems:
            raise AlignError.gather(problems)
        return cls(
            learns_from=tuple(algorithm.learns_from),
            scores_prompt=algorithm.scores_prompt,
            reward=algorithm.head == "reward",
            max_length=data.max_length,
            truncation=data.truncation_mode,
            allow=frozenset(data.allow),
            special_tokens=frozenset(data.special_tokens),
            weighs=algorithm.weighs_messages,
        )

    def check(self, encoder: Encoder) -> None:
        """Raise AlignError where a special token is named that the tokenizer does not have."""
        unknown = sorted(self.special_tokens - encoder.names)
        problems = [
            Problem(
                "data.special_tokens",
                f"{name!r} is no special token of this tokenizer",
                did_you_mean(name, sorted(encoder.names)) or "add it to the tokenizer first",
            )
            for name in unknown
        ]
        if problems:
            raise AlignError.gather(problems)


class Note(NamedTuple):
    """A finding in one row."""

    finding: str
    detail: str = ""
    tokens: int = 0
    """For truncation: the number of tokens over the limit."""


class UncutSequence(NamedTuple):
    """One sequence before truncation. answers: token spans that must each end with a token that ends a turn."""

    role: str
    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    answers: Sequence[Span] = ()
    given: bool = False
    """True if it has text of others than the assistant, so that not all of it may be scored."""
    weights: NDArray[np.float32] | None = None
    """The weight of each token by its message [T]; None where all are 1."""


@dataclass(frozen=True)
class TemplateFinding:
    """A finding over all rows, with the number of rows and the first of them."""

    id: str
    level: Literal["error", "warning"]
    what: str
    fix: str
    count: int
    """Number of rows; 0 for a finding about the tokenizer or the template."""
    rows: tuple[str, ...] = ()
    """The first rows, as ``train.jsonl:17``."""
    detail: str = ""
    """The detail seen in the first row."""
    tokens: int = 0
    """For truncation: tokens over the limit, in all rows."""
    left_out: int = 0
    """Number of these rows that gave no example."""
    accepted: bool = False
    """True if the run file accepts the finding."""

    def __str__(self) -> str:
        return str(self.problem)

    @property
    def problem(self) -> Problem:
        """The finding as a message."""
        rows = ", ".join(self.rows) + (
            f" and {self.count - len(self.rows)} more" if self.count > len(self.rows) else ""
        )
        what = f"{self.id}: {self.what}" + (f" ({self.detail})" if self.detail else "")
        if self.count:
            counts = [f"{self.count:,} row{'s' * (self.count != 1)}"]
            counts += [f"{self.tokens:,} tokens"] if self.tokens else []
            counts += [f"{self.left_out:,} left out"] if self.left_out else []
            what += f": {', '.join(counts)}"
        accept = f"; or accept it: with data.allow: [{self.id}] {CATALOGUE[self.id].accepted}"
        return Problem(rows, what, self.fix + accept * (self.level == "error"), self.level)

    def joined(self, other: TemplateFinding) -> TemplateFinding:
        """Return this finding with the rows and counts of another set of rows added."""
        return replace(
            self,
            count=self.count + other.count,
            rows=(*self.rows, *other.rows)[:ROWS_NAMED],
            detail=self.detail or other.detail,
            tokens=self.tokens + other.tokens,
            left_out=self.left_out + other.left_out,
        )

    def dump(self) -> dict[str, Any]:
        """Return the finding as plain data, for reports."""
        return asdict(self)


def merge_findings(findings: Iterable[TemplateFinding]) -> list[TemplateFinding]:
    """Merge the findings of several sets of rows: equal ones become one, with counts added and the first rows named."""
    found: dict[tuple[str, str, str, str], TemplateFinding] = {}
    for finding in findings:
        key = (finding.id, finding.level, finding.what, finding.fix)
        first = found.get(key)
        found[key] = finding if first is None else first.joined(finding)
    return list(found.values())


@dataclass
class Tally:
    """The notes of all rows, counted: ``add`` row by row, ``merge`` tallies in the order of the rows."""

    _found: dict[str, TemplateFinding] = field(default_factory=dict)

    def add(self, source: str, notes: Iterable[Note], left_out: bool) -> None:
        """Count the notes of one row. left_out: True if the row gave no example."""
        for note in {n.finding: n for n in notes}.values():
            self._put(_finding(note.finding, note.detail, 1, (source,), note.tokens, int(left_out)))

    def merge(self, other: Tally) -> None:
        """Add the notes of later rows."""
        for finding in other._found.values():
            self._put(finding)

    def _put(self, new: TemplateFinding) -> None:
        old = self._found.get(new.id)
        self._found[new.id] = new if old is None else old.joined(new)

    def findings(self, settings: TokenizationSettings, encoder: Encoder) -> list[TemplateFinding]:
        """Return all findings, with those about the tokenizer, errors first."""
        found = [*self._found.values(), *(_finding(name) for name in _tokenizer_faults(encoder))]
        return sorted((_judged(f, settings) for f in found), key=lambda f: (f.level != "error", f.id))


def _finding(
    name: str, detail: str = "", count: int = 0, rows: tuple[str, ...] = (), tokens: int = 0, out: int = 0
) -> TemplateFinding:
    entry = CATALOGUE[name]
    return TemplateFinding(name, entry.level, entry.what, entry.fix, count, rows, detail, tokens, out)


def _judged(finding: TemplateFinding, settings: TokenizationSettings) -> TemplateFinding:
    """Return the finding with the level that the run file gives it: a warning where it is accepted or chosen."""
    if finding.id in settings.allow:
        return replace(finding, level="warning", accepted=True, fix=f"accepted: {CATALOGUE[finding.id].accepted}")
    if finding.id == "truncation" and settings.truncation in TRUNCATED:
        return replace(finding, level="warning", what=TRUNCATED[settings.truncation], fix="")
    return finding


def _tokenizer_faults(encoder: Encoder) -> Iterable[str]:
    if encoder.pad_id is not None and encoder.pad_id == encoder.eos_id:
        yield "eos-is-pad"
    if "strftime_now" in str(encoder.templates):
        yield "template-dated"


def examine(draft: UncutSequence, encoder: Encoder, settings: TokenizationSettings) -> Iterable[Note]:
    """Yield notes on the faults of one sequence, judged from its tokens and mask alone."""
    ids, scored = draft.ids, draft.scored
    if len(ids) > 1 and ids[0] == ids[1] == encoder.bos_id:
        yield Note("double-bos")
    if draft.role == "prompt":
        return
    if not scored[1:].any():
        yield Note("empty-mask")
        return
    if settings.reward or settings.scores_prompt:
        return
    if draft.given and scored[1:].all():
        yield Note("full-mask")
    for number, (start, end) in enumerate(draft.answers, 1):
        learned = (int(ids[at]) for at in range(end - 1, start - 1, -1) if scored[at])
        last = next((i for i in learned if not encoder.blank(i)), None)
        if last is None or last not in encoder.added:
            yield Note(
                "end-of-turn-untrained", f"answer {number} ends {encoder.pieces([] if last is None else [last])}"
            )
        elif last != encoder.eos_id:
            yield Note("end-of-turn-not-eos", encoder.pieces([last])[0])


def stop_on_errors(findings: Iterable[TemplateFinding]) -> None:
    """Raise AlignError with every finding that stops a run, if there is one."""
    errors = [f.problem for f in findings if f.level == "error"]
    if errors:
        raise AlignError.gather([*errors, Problem("", "`align data show FILE --model MODEL` shows what is scored")])
