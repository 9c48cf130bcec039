"""Sizes of data, with the kind: `9k traces`, `26k comparisons`, `2.1M tokens`, `300 pages`, `40 GB of logs`."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.project_facts import Evidence, Status
from align.advisor.text.hardware_mentions import BYTES
from align.advisor.text.nouns import Noun, noun, noun_before, phrase_end
from align.advisor.text.number import Number
from align.advisor.text.sentence_context import SentenceContext
from align.advisor.thresholds import shipped

KINDS = ("preference_pairs", "unpaired_feedback", "eval_set", "prompts", "sft_pairs", "logs")
FEW = {
    "sft_pairs": 4,
    "preference_pairs": 10,
    "unpaired_feedback": 10,
    "prompts": 20,
    "documents": 10,
    "logs": 10,
    "eval_set": 5,
}
"""Smaller numbers are things mentioned, not data: two answers, three questions."""
TOKENS = 1e5
"""Fewer tokens belong to a prompt or an answer, not to a data set."""
BODY = 10
"""The smallest number that may be a data set of its own."""
JUDGED = ("preference_pairs", "unpaired_feedback")
NAMED = ("preference_pairs", "unpaired_feedback", "sft_pairs", "prompts", "documents")
"""Kinds that a noun alone identifies, for the next sentence."""
THINGS = 30
"""The smallest number of things with an unknown name that may be data."""
BRIEF = 9
"""Most words of a sentence that only counts things of the one before it: `There are 24,000 of them.`"""
SHOTS = 30
"""Fewer examples, in a sentence about a prompt, are part of the prompt."""
SEPARATORS = frozenset((",", ";", "，", "、", "；", "(", ":", "and", "und", "y", "plus", "then"))
CORPUS = 1e9
"""More tokens than instruction data ever have; so many are a corpus."""
KEPT = {("prompts", "logs"), ("logs", "prompts"), ("documents", "logs"), ("sft_pairs", "prompts")}
"""(noun, context) pairs where the noun decides the kind, not the words around it."""


def datasets(scene: SentenceContext) -> Iterator[Evidence]:
    """Yield sizes of data. Numbers that other readers claimed are skipped."""
    free = [n for n in scene.numbers if n.start not in scene.taken and not n.share]
    large = [n for n in free if (n.value >= BODY or n.value == 0) and noun(scene, n).end > n.end]
    for number in free:
        before = [n for n in large if n.end <= number.start]
        after = [n for n in large if n.start >= number.end]
        low = _begins(scene, before[-1], number) if before else 0
        yield from _size(scene, number, low, after[0].start if after else len(scene.sentence.words))


def kind_mentioned(scene: SentenceContext) -> str | None:
    """Return the kind of data that a sentence mentions, for the next one: `That's 64,000 tickets now.`"""
    kind = _kind(scene, 0, 0, 0, len(scene.sentence.words))
    if kind is None:
        nouns = [m.label.removeprefix("data:") for m in scene.countable if m.label.startswith("data:")]
        kind = next((noun for noun in reversed(nouns) if noun in NAMED), None)
    return kind


def _begins(scene: SentenceContext, before: Number, number: Number) -> int:
    """Return the first word that describes a number and not the one before: behind the last mark or "and" between."""
    words = scene.sentence.words
    start = noun(scene, before).end
    marks = [at for at in range(start, number.start) if words[at] in SEPARATORS]
    return marks[-1] + 1 if marks else start


def _size(scene: SentenceContext, number: Number, low: int, high: int) -> Iterator[Evidence]:
    words, behind = scene.sentence.words, noun(scene, number)
    if number.end < len(words) and words[number.end] in BYTES:
        yield from _bytes(scene, number, low, high)
    elif _is_tokens(scene, number, behind, low, high):
        if number.value >= TOKENS:
            end = behind.end if behind.named("unit:tokens") else number.end
            held = "sft_pairs" if number.value < CORPUS and _are_instructions(scene, end, high) else "corpus"
            yield from _held(scene, held, "tokens", number, number.start, end)
    else:
        yield from _rows(scene, number, behind, low, high)


def _rows(scene: SentenceContext, number: Number, behind: Noun, low: int, high: int) -> Iterator[Evidence]:
    plain, start, end = behind.named("data:"), number.start, behind.end
    if not behind.labels and (before := noun_before(scene, number, "data:")):
        plain, start, end = before.label, before.start, number.end
    if scene.named("cue:overlap") and scene.sentence.words[number.end : number.end + 1] in (("of",), ("de",), ("von",)):
        return  # some of them are in the test too
    guess = _kind(scene, start, end, low, high)
    if guess is None and scene.before in JUDGED and plain in ("data:weak", "data:logs", "data:unpaired_feedback"):
        guess = scene.before
    if plain == "data:prompts" and guess == "unpaired_feedback" and scene.has("kind:prompts", low, high):
        guess = "prompts"  # what passes or fails are answers to come
    if scene.measured_on(number) and not behind.named("unit:tokens"):
        kind: str | None = "eval_set"  # measured on 250 past disruptions
    elif plain:
        known = guess == "prompts" or not behind.named("unit:other")
        kind = None if not known else _settled(plain.removeprefix("data:"), guess)
    else:
        kind = _unnamed(scene, number, behind, guess)
    if kind is None or 0 < number.value < FEW.get(kind, 2) or number.value != int(number.value):
        return
    if kind == "sft_pairs" and number.value < SHOTS and scene.named("near:shots"):
        return
    if kind == "documents" and scene.has("kind:corpus", 0, len(scene.sentence.words)):
        kind = "corpus"
    yield from _held(scene, kind, "docs" if kind in ("documents", "corpus") else "rows", number, start, end)


def _is_tokens(scene: SentenceContext, number: Number, behind: Noun, low: int, high: int) -> bool:
    if behind.named("unit:tokens") or (number.value >= 1e6 and noun_before(scene, number, "unit:tokens")):
        return True
    bare = number.letter == "b" or not behind.labels
    return number.value >= 5e7 and bare and scene.has("kind:corpus", low, high)


def _are_instructions(scene: SentenceContext, start: int, high: int) -> bool:
    """Return whether tokens are of instructions and answers: `202M tokens of instruction data`."""
    labelled = scene.has("data:sft_pairs", start, high) and scene.has("kind:sft_pairs", start, high)
    return labelled and not scene.has("kind:corpus", start, high)


def _unnamed(scene: SentenceContext, number: Number, behind: Noun, guess: str | None) -> str | None:
    """Return the kind of things with an unknown name, by words like labelled or compared: `4,000 annotated haikus`."""
    year = number.plain and 1900 <= number.value <= 2100
    if behind.labels or year:
        return None
    words, end = scene.sentence.words, phrase_end(scene, number)
    them = _counted(scene, number)
    named = _kind(scene, number.end, number.end, number.end, end + 3) is not None
    pointed = words[number.start - 1 : number.start] == (":",)
    if guess and (named or (number.value >= THINGS and (end > number.end or them or pointed))):
        return guess
    alone = len(words) <= BRIEF or them == len(words) or (them and scene.sentence.kinds[them] == "mark")
    headed = number.start <= 1 and len(words) <= BRIEF and scene.before in JUDGED  # 70,000 swipes.
    return scene.before if ((them and alone) or headed) and number.value >= THINGS else None


def _counted(scene: SentenceContext, number: Number) -> int:
    """Return the end of words that count things mentioned before: `leaving 8,800`, `41k of them`; or 0."""
    counting = scene.named("phrase:counted")
    behind = [m.end for m in counting if 0 <= m.start - number.end <= 1]
    before = [number.end for m in counting if m.end <= number.start <= m.end + 2]
    return max(behind + before, default=0)


def _kind(scene: SentenceContext, start: int, end: int, low: int, high: int) -> str | None:
    """Return the kind of data by the words around a number, the most specific kind first; None without a clue."""
    for kind in KINDS:
        reach = (max(low, start - 6), min(high, end + 7)) if kind == "eval_set" else (low, high)
        if scene.has(f"kind:{kind}", *reach):
            return kind
    return None


def _settled(plain: str, guess: str | None) -> str | None:
    """Return the kind of a noun, given the kind by the words around it."""
    if plain == "weak":
        return guess
    if plain == "rows":
        return guess or "logs"
    if plain == "preference_pairs" and guess != "eval_set":
        return plain
    if plain == "unpaired_feedback" and guess not in ("eval_set", "preference_pairs"):
        return plain
    if (plain, guess) in KEPT:
        return plain
    return guess or plain


def _held(scene: SentenceContext, kind: str, size: str, number: Number, start: int, end: int) -> Iterator[Evidence]:
    status: Status = scene.scopes.of(start, end)
    status = status if status in ("negated", "planned", "done", "attributed") and number.value else "asserted"
    if kind == "prompts" and status == "negated" and any(m.start >= end for m in scene.named("kind:prompts")):
        status = "asserted"  # of 9,000 problems that have no answers the answers are denied
    if status == "attributed" and not scene.scopes.theirs(start, end):
        status = "asserted"
    yield scene.evidence(f"data.{kind}", number.value > 0, start, end, status)
    value = int(number.value)
    if kind == "eval_set":
        yield scene.evidence("evals.held_out_rows", value, start, end, status, number)
    yield scene.evidence(f"data.{kind}.{size}", value, start, end, status, number)


def _bytes(scene: SentenceContext, number: Number, low: int, high: int) -> Iterator[Evidence]:
    """Yield bytes of text, and an estimate of their tokens."""
    end = number.end + 1
    if not scene.has("near:text", max(low, number.start - 6), min(high, end + 6)) or number.start in scene.taken:
        return
    kind = "logs" if scene.has("data:logs", max(low, number.start - 8), min(high, end + 5)) else "corpus"
    size = int(number.value * BYTES[scene.sentence.words[number.end]])
    yield scene.evidence(f"data.{kind}", True, number.start, end)
    yield scene.evidence(f"data.{kind}.bytes", size, number.start, end, number=number)
    tokens = int(size // shipped().bytes_per_token)
    guess = Number(tokens, number.start, end, tokens * 0.8, tokens * 1.4, True)
    yield scene.evidence(f"data.{kind}.tokens", tokens, number.start, end, number=guess)
