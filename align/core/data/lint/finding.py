"""Findings of data checks: the catalogue of them, ``LintFinding``, and ``Lint``, the base of every check.

A check sees every row once and then reports its findings; they do not depend on the order of the rows.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from align.core.data.lint.row_view import RowView

Level = Literal["error", "warning", "note"]
RANK: dict[Level, int] = {"error": 2, "warning": 1, "note": 0}

# The catalogue: every finding, its level, its sentence and its fix. docs/data_checks.md lists them.


class LintEntry(NamedTuple):
    """The meaning of a finding's id. what: the message, with ``{counted}`` for "3 of 40 rows (7.5%)".

    loud_from: the share of rows below which the finding is only a note.
    """

    level: Literal["error", "warning", "note"]
    what: str
    fix: str
    loud_from: float = 0.0


CATALOGUE: Mapping[str, LintEntry] = {
    # any kind of row
    "exact-duplicates": LintEntry(
        "warning",
        "{counted} say what an earlier row says, but for case, width and white space",
        "leave them out: what is repeated is learned by heart first",
    ),
    "near-duplicates": LintEntry(
        "warning",
        "{counted} are nearly another row (three words in a row: about {threshold:.0%} the same; {looked_at})",
        "keep one of each, or see that they differ where it matters",
    ),
    "no-words": LintEntry(
        "warning", "{counted} have a text or an answer without a letter or a digit", "leave them out"
    ),
    "mojibake": LintEntry(
        "warning",
        "{counted} hold text that was decoded with the wrong character set (Ã© for é)",
        "decode it again where it came from; `ftfy` fixes most of what is left",
    ),
    "replacement-characters": LintEntry(
        "warning", "{counted} hold U+FFFD, which stands for what was lost in decoding", "decode it again at its source"
    ),
    "control-characters": LintEntry(
        "warning",
        "{counted} hold control characters, or marks that turn the direction of writing around",
        "take them out, unless the model is to write them",
    ),
    "template-tokens": LintEntry(
        "warning",
        "{counted} spell tokens of a chat template in their text",
        "take them out: the template adds its own; give conversations as messages",
    ),
    "language-mix": LintEntry(
        "note",
        "rows are in several languages: {languages} (of {of:,} distinct rows looked at)",
        "nothing need be done where that is wanted; else leave the others out",
    ),
    "over-max-length": LintEntry(
        "warning",
        "{counted} have more than {max_length:,} tokens, the chat template's own not counted",
        "raise the length, split them, or leave them out; what is cut off is not learned",
    ),
    "pii": LintEntry(
        "warning",
        "{counted} hold what looks like personal data: {by_kind}",
        "take it out or put placeholders in: models repeat what they were trained on; see that you may use it",
    ),
    "secrets": LintEntry(
        "error",
        "{counted} hold what looks like keys or passwords: {by_kind}",
        "revoke them, and leave these rows out or put placeholders in",
    ),
    "answer-in-prompt": LintEntry(
        "warning",
        "{counted} have their answer, word for word, in their prompt",
        "see whether the answer leaks; for extracting and rewriting it is as it should be",
    ),
    "one-source": LintEntry(
        "note", "{counted} come from one source, {value!a}", "know it: what is odd there will be learned"
    ),
    "no-licence": LintEntry(
        "note", "no column says under which licence the rows are", "write it down where you know it"
    ),
    "licence-restricts": LintEntry(
        "warning",
        "{counted} are under a licence that is unknown or forbids uses: {licences}",
        "see whether it allows what you mean to do",
    ),
    "few-rows": LintEntry(
        "warning",
        "rows: {count:,}; fewer than {floor:,} of this kind are not known to change a model for the better",
        "gather more, or put these into the prompt",
    ),
    "eval-overlap-exact": LintEntry(
        "error",
        "{counted} ask what an evaluation asks: {suites}",
        "leave them out: a score on what was trained on says nothing",
    ),
    "eval-overlap-ngram": LintEntry(
        "error",
        "{counted} hold more than half of an evaluation's prompt, in runs of {n} words: {suites}",
        "leave them out: a score on what was trained on says nothing",
    ),
    "held-out-overlap": LintEntry(
        "warning",
        "{counted} are held out and learned from as well",
        "leave them out of one of the two: how well they are known says nothing of other rows",
    ),
    # answers
    "no-user": LintEntry("warning", "{counted} are conversations in which no user speaks", "give them a user's turn"),
    "some-system": LintEntry(
        "note",
        "{counted} have a system message, the others have none",
        "train as you will ask: with the system message that will be used, or without",
    ),
    "ends-without-answer": LintEntry(
        "warning", "{counted} end with another turn than the assistant's", "cut them after the last answer"
    ),
    "roles-repeat": LintEntry(
        "warning", "{counted} have two turns of one role in a row", "join them; many templates refuse such rows"
    ),
    "unknown-message-key": LintEntry(
        "note", "{counted} have messages with keys that nobody reads: {keys}", "leave them out, or spell them as read"
    ),
    "refusals": LintEntry(
        "warning",
        "{counted} refuse to answer",
        "see that the model is to refuse as often as that; it learns the share, not only the cases",
        loud_from=0.05,
    ),
    "cut-off": LintEntry(
        "warning",
        "{counted} have an answer that breaks off: amid a sentence, or within a block of code",
        "raise the limit they were made with, or leave them out: the model learns to stop there",
    ),
    "contradictory-answers": LintEntry(
        "warning",
        "{counted} have a short answer where the same prompt has another one elsewhere",
        "decide which is right",
    ),
    "repeated-prompts": LintEntry(
        "note",
        "{counted} have a prompt that an earlier row has, with another answer",
        "nothing need be done where several answers were sampled on purpose",
    ),
    # preferences
    "same-answers": LintEntry(
        "warning",
        "{counted} have answers that differ in nothing but case, width and white space",
        "leave them out: their loss stays at ln 2 = 0.693 or teaches white space",
    ),
    "contradictory-pairs": LintEntry(
        "warning", "{counted} prefer what another row of the same prompt rejects", "decide which is better"
    ),
    "length-bias": LintEntry(
        "warning",
        "the chosen answer is the longer one in {counted}: "
        "{chosen_mean:.0f} words against {rejected_mean:.0f} on average",
        "balance the lengths, or choose a loss that takes length out; else length is what is learned",
    ),
    "same-opening": LintEntry(
        "warning",
        "{counted} have answers whose first {n} words are the same",
        "what is shared teaches nothing, and pairs that hardly differ can lower the chosen answer too",
        loud_from=0.5,
    ),
    "separable": LintEntry(
        "warning",
        "one thing seen from outside tells chosen from rejected in {counted} looked at: {feature}",
        "see whether this is what is to be learned; the loss will fall to nothing on it alone",
    ),
    "ties": LintEntry(
        "warning", "{counted} have a margin of zero or less", "leave ties out, and turn negative ones around"
    ),
    "no-label-source": LintEntry("note", "no column says who judged", "write down whether people or which model did"),
    # single answers with a label
    "one-label": LintEntry(
        "error", "all {of:,} rows are labelled {label}: there is nothing to tell apart", "add rows of the other label"
    ),
    "labels-unbalanced": LintEntry(
        "warning",
        "{counted} are labelled true",
        "weigh the rarer label (desirable_weight or undesirable_weight) until the sums are as 1 to 1 or 1 to 1.5",
    ),
    # plain text
    "boilerplate": LintEntry(
        "warning",
        "{counted} stand in many documents (at least {floor:,}): headers, footers, notices",
        "take such lines out: they are learned best and mean least",
    ),
    "low-quality": LintEntry(
        "warning",
        "{counted} look like no prose: too few letters, words too short or long, or hardly any words among signs",
        "read some, and leave them out unless tables, logs or code are what is to be learned",
        loud_from=0.01,
    ),
    "short-documents": LintEntry(
        "note", "{counted} have under {floor} words", "join what belongs together, or leave them out"
    ),
    "fertility": LintEntry(
        "warning",
        "a word takes {fertility:.2f} tokens on average: the tokenizer does not know this language or domain well",
        "choose a model whose tokenizer does, or reckon with longer sequences",
    ),
}

# Findings.

SHOWN = 5
"""Most rows named in a sentence."""
LISTED = 100
"""Most rows named in JSON."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """A finding about the rows.

    count, of: the number of affected ``unit`` (rows, pairs, prompts, lines ...) and of all. what: the message with the
    counts. rows: the first LISTED, as ``train.jsonl:17``, in the order of the file. detail: figures, as plain data.
    """

    id: str
    level: Level
    count: int
    of: int
    unit: str
    what: str
    fix: str
    rows: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share count / of, in [0, 1]; 0 if ``of`` is 0."""
        return self.count / self.of if self.of else 0.0

    @property
    def places(self) -> str:
        """The first SHOWN rows as ``rows 2, 17``, with their files if there are several."""
        files = {row.rpartition(":")[0] for row in self.rows}
        named = [row.rpartition(":")[2] if len(files) == 1 else row for row in self.rows[:SHOWN]]
        if not named:
            return ""
        return f"row{'s' * (len(self.rows) > 1)} {', '.join(named)}" + " ..." * (len(self.rows) > SHOWN)

    def __str__(self) -> str:
        where = f": {self.places}" if self.rows else ""
        return f"{self.level}: {self.what}{where} [{self.id}]"

    def dump(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {**asdict(self), "share": self.share}


class Places:
    """The file and line of each row, by its number in the order of reading, in a few bytes a row."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file, self._line = array("I"), array("Q")

    def add(self, source: str) -> int:
        """Add the next row, ``train.jsonl:17``, and return its number."""
        file, _, line = source.rpartition(":")
        if not (line.isascii() and line.isdigit() and len(line) < 19):
            file, line = source, "0"
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._line.append(int(line))
        return len(self._line) - 1

    def __len__(self) -> int:
        return len(self._line)

    def names(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Return the places of the first LISTED of some rows, in order, for messages."""
        files, first = list(self._files), sorted(rows)[:LISTED]
        return tuple(f"{files[self._file[row]]}:{self._line[row]}" for row in first)


def finding(
    id: str,
    places: Places,
    rows: Iterable[int] = (),
    *,
    count: int | None = None,
    of: int | None = None,
    unit: str = "rows",
    **detail: Any,
) -> LintFinding:
    """Return a finding of the catalogue, its sentence filled with the counts and with ``detail``.

    count: of ``unit``; by default the number of rows. of: by default all rows.
    """
    entry, rows = CATALOGUE[id], list(rows)
    count, of = len(rows) if count is None else count, len(places) if of is None else of
    share = count / of if of else 0.0
    percent = f"{share:.1%}" if share >= 0.001 or not count else "under 0.1%"
    counted = f"{count:,} of {of:,} {unit} ({percent})"
    what = entry.what.format(counted=counted, count=count, of=of, **detail)
    level: Level = entry.level if share >= entry.loud_from else "note"
    return LintFinding(id, level, count, of, unit, what, entry.fix, places.names(rows), detail)


# The base of a check, and bounded collections in which checks keep a sample of the rows.

T = TypeVar("T")


class Lint:
    """A check, or several that need the same data. Subclasses keep a few bytes a row, never the text of all rows."""

    def see(self, row: RowView) -> None:
        """Look at one row."""
        raise NotImplementedError

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield the findings, after the last row."""
        raise NotImplementedError


class BottomKSample(Generic[T]):
    """At most ``most`` different items: those with the smallest digests, so the same in any order.

    Because digests are random, this is a random sample of distinct items: bottom-k, after Bar-Yossef et al. (2002).
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[int] = []
        self._held: dict[int, T] = {}

    def offer(self, digest: int, make: Callable[[], T]) -> None:
        """Keep the item if its digest is among the smallest; ``make`` is called only then."""
        full = len(self._heap) >= self.most
        if digest in self._held or (full and digest >= -self._heap[0]):
            return
        self._held[digest] = make()
        if full:
            del self._held[-heapq.heapreplace(self._heap, -digest)]
        else:
            heapq.heappush(self._heap, -digest)

    def __iter__(self) -> Iterator[T]:
        return (self._held[digest] for digest in sorted(self._held))

    def __len__(self) -> int:
        return len(self._held)


@dataclass
class ThinnedDict(Generic[T]):
    """A dict by digest with at most ``most`` items: when it is full, digests over half the limit are removed.

    It then holds every digest under ``limit`` that was set, in whatever order.
    """

    most: int
    limit: int = 2**64
    held: dict[int, T] = field(default_factory=dict)

    def wants(self, digest: int) -> bool:
        """Return True if this digest is still kept."""
        return digest < self.limit

    def set(self, digest: int, value: T) -> None:
        """Set the value of a digest that ``wants`` accepts."""
        self.held[digest] = value
        while len(self.held) > self.most:
            self.limit //= 2
            self.held = {key: value for key, value in self.held.items() if key < self.limit}

    @property
    def share(self) -> float:
        """The expected share of all digests that is kept."""
        return self.limit / 2**64
