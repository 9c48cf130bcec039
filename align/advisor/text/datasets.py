"""Numbers of data, and of which kind: `9k traces`, `26k comparisons`, `2.1M tokens`, `300 pages`, `40 GB of logs`."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.facts import Evidence, Status
from align.advisor.text.hanzi import Number
from align.advisor.text.hardware import BYTES
from align.advisor.text.quantities import LEFT, head, noun, phrase_end
from align.advisor.text.scene import Scene

BYTES_PER_TOKEN = 4
"""Of English prose (research: 3 to 3.5 for code), so tokens from bytes are a guess."""
KINDS = ("preference_pairs", "unpaired_feedback", "eval_set", "prompts", "sft_pairs", "logs")
FEW = {
    "sft_pairs": 2,
    "preference_pairs": 2,
    "unpaired_feedback": 2,
    "prompts": 20,
    "documents": 10,
    "logs": 10,
    "eval_set": 5,
}
"""Smaller numbers are things spoken of, not data: two answers, three questions."""


def datasets(scene: Scene) -> Iterator[Evidence]:
    """Sizes of data. Numbers that other readers took are left alone."""
    free = [n for n in scene.numbers if n.start not in scene.taken and not n.share]
    for index, number in enumerate(free):
        low = _begins(scene, free[index - 1], number) if index else 0
        high = free[index + 1].start if index + 1 < len(free) else len(scene.sentence.words)
        yield from _size(scene, number, low, high)


def _begins(scene: Scene, before: Number, number: Number) -> int:
    """Where the words begin that speak of a number and not of the one before: behind the last mark or "and" between."""
    words = scene.sentence.words
    start = max(before.end, head(scene, before)[1])
    marks = [at for at in range(start, number.start) if words[at] in (",", ";", "，", "、", "(", ":", "and", "und", "y", "plus", "then")]
    return marks[-1] + 1 if marks else start


def _size(scene: Scene, number: Number, low: int, high: int) -> Iterator[Evidence]:
    words = scene.sentence.words
    if number.end < len(words) and words[number.end] in BYTES:
        yield from _bytes(scene, number, low, high)
        return
    tokens = noun(scene, number, "unit:tokens") or (
        ("", number.end) if number.value >= 1e6 and _before(scene, number, "unit:tokens") else None
    )
    if tokens or (
        number.value >= 5e7 and (number.letter == "b" or number.value >= 1e8) and scene.has("kind:corpus", low, high)
    ):
        end = tokens[1] if tokens else number.end
        kind = "corpus"
        if (
            scene.has("kind:sft_pairs", number.end, high)
            and not scene.has("kind:corpus", number.end, high)
            and (scene.among("data:sft", number.end, high))
            and scene.has("data:sft_pairs", number.end, high)
        ):
            kind = "sft_pairs"
        if number.value >= 1e5:
            yield from _held(scene, kind, "tokens", number, number.start, end)
        return
    found = noun(scene, number, "data:")
    behind = noun(scene, number, "unit:")
    start, end = number.start, found[1] if found else number.end
    if found is None and behind is None:
        before = _before(scene, number, "data:")
        if before:
            found, start = (before[0], number.end), before[1]
    guess = _kind(scene, start, end, low, high)
    if found is None:
        adjacent = _kind(scene, number.end, number.end, number.end, min(phrase_end(scene, number) + 3, high))
        if (
            behind is not None
            or adjacent is None
            or number.value < 30
            or (number.plain and 1900 <= number.value <= 2100)
        ):
            return
        kind: str | None = guess
    else:
        plain = found[0].removeprefix("data:")
        if guess is None and (plain == "weak" or (behind is not None and behind[0] == "unit:other")):
            return
        kind = _settled(scene, plain, guess)
    if kind is None or 0 < number.value < FEW.get(kind, 2) or number.value != int(number.value):
        return
    if kind == "documents" and scene.has("kind:corpus", 0, len(words)):
        kind = "corpus"
    yield from _held(scene, kind, "docs" if kind in ("documents", "corpus") else "rows", number, start, end)


def _before(scene: Scene, number: Number, head: str) -> tuple[str, int] | None:
    """A noun before a number: `traces: ~9k`, `prompts could be exported, ~2000`."""
    found = [
        m
        for m in scene.among(head, max(number.start - LEFT - 1, 0), number.start)
        if not any(m.end <= n.start < number.start for n in scene.numbers) and not _counted(scene, m.start)
    ]
    if not found:
        return None
    between = scene.sentence.words[found[-1].end : number.start]
    if not any(
        w in (":", ",", "(", "=", "~", "，", "：", "（", "约")
        or w in ("is", "are", "about", "size", "count", "total", "somos", "son", "sind")
        for w in between
    ):
        return None
    return found[-1].label, found[-1].start


def _counted(scene: Scene, at: int) -> bool:
    return any(n.end <= at <= n.end + 2 for n in scene.numbers)


def _kind(scene: Scene, start: int, end: int, low: int, high: int) -> str | None:
    """What the words around a number say of its data, the more telling first."""
    for kind in KINDS:
        reach = (max(low, start - 6), min(high, end + 7)) if kind == "eval_set" else (low, high)
        if scene.has(f"kind:{kind}", *reach):
            return kind
    return None


def _settled(scene: Scene, plain: str, guess: str | None) -> str:
    """The kind of a noun, given what the words around it say."""
    if plain == "preference_pairs" or plain == "unpaired_feedback":
        return plain if guess != "eval_set" else guess
    if plain == "prompts" and guess == "logs":
        return "prompts"
    if plain == "logs" and guess == "prompts":
        return "logs"
    if plain == "documents" and guess == "logs":
        return "documents"
    if plain == "sft_pairs" and guess == "prompts":
        return "sft_pairs"
    return guess or ("sft_pairs" if plain == "weak" else plain)


def _held(scene: Scene, kind: str, size: str, number: Number, start: int, end: int) -> Iterator[Evidence]:
    status: Status = scene.scopes.of(start, end)
    status = status if status in ("negated", "planned") and number.value else "asserted"
    yield scene.evidence(f"data.{kind}", number.value > 0, start, end, status)
    value = int(number.value)
    if kind == "eval_set":
        yield scene.evidence("evals.held_out_rows", value, start, end, status, number)
    yield scene.evidence(f"data.{kind}.{size}", value, start, end, status, number)


def _bytes(scene: Scene, number: Number, low: int, high: int) -> Iterator[Evidence]:
    """Bytes of text, and the tokens they may come to."""
    end = number.end + 1
    if not scene.has("near:text", max(low, number.start - 6), min(high, end + 6)) or number.start in scene.taken:
        return
    kind = "logs" if scene.has("data:logs", max(low, number.start - 8), min(high, end + 5)) else "corpus"
    size = int(number.value * BYTES[scene.sentence.words[number.end]])
    yield scene.evidence(f"data.{kind}", True, number.start, end)
    yield scene.evidence(f"data.{kind}.bytes", size, number.start, end, number=number)
    tokens = size // BYTES_PER_TOKEN
    guess = Number(tokens, number.start, end, tokens * 0.8, tokens * 1.4, True)
    yield scene.evidence(f"data.{kind}.tokens", tokens, number.start, end, number=guess)
