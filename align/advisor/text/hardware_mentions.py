"""GPUs, their number and memory: `4 x A100 80G`, `16 cards of 23 GB`, `two 3090s`."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.project_facts import Evidence
from align.advisor.text.number import Number
from align.advisor.text.sentence_context import SentenceContext
from align.schemas import gpus

BYTES = {
    **dict.fromkeys(("kb",), 1e3),
    **dict.fromkeys(("mb", "megabyte", "megabytes"), 1e6),
    **dict.fromkeys(("gb", "gigabyte", "gigabytes", "gig", "gigs", "go"), 1e9),
    **dict.fromkeys(("tb", "terabyte", "terabytes"), 1e12),
    **dict.fromkeys(("pb", "petabyte", "petabytes"), 1e15),
    **{unit: 2.0**power for unit, power in (("kib", 10), ("mib", 20), ("gib", 30), ("tib", 40))},
}
"""Bytes of each unit."""
FAMILIES = [
    "llama",
    "qwen",
    "mistral",
    "mixtral",
    "gemma",
    "phi",
    "falcon",
    "deepseek",
    "olmo",
    "pythia",
    "yi",
    "bloom",
    "glm",
    "chatglm",
    "internlm",
    "baichuan",
    "gpt",
    "claude",
    "gemini",
    "granite",
    "command",
    "smollm",
    "tinyllama",
    "vicuna",
    "alpaca",
    "zephyr",
    "tulu",
    "opt",
    "mpt",
    "starcoder",
    "codellama",
    "salamandra",
    "teuken",
    "nemotron",
]


def card(scene: SentenceContext, at: int) -> tuple[str, int] | None:
    """Return the GPU named at a word: its word in the list of GPUs, and the index behind its name."""
    words = scene.sentence.words
    if at >= len(words):
        return None
    word = words[at].removeprefix("rtx").removeprefix("gtx")
    for name in (word, word.removesuffix("s"), word.removesuffix("ti")):
        if name in gpus.sizes_by_word() and (not name.isdigit() or word != words[at] or _geforce(scene, at)):
            end = at + 1
            while end < len(words) and words[end] in _ENDINGS:
                end += 1
            return name, end
    return None


def _geforce(scene: SentenceContext, at: int) -> bool:
    words = scene.sentence.words
    if at and words[at - 1] in ("rtx", "gtx", "geforce", "nvidia"):
        return True
    if at + 1 < len(words) and scene.sentence.joined(at + 1) and words[at + 1] in ("s", "ti", "er", "ern"):
        return True
    return (
        at > 0
        and words[at - 1] in _COUNTS
        and not (
            at + 1 < len(words)
            and scene.sentence.kinds[at + 1] == "word"
            and words[at + 1] not in ("and", "with", "in", "y", "mit", "und", "con", "im", "en", "von", "vom")
        )
    )


_ENDINGS = frozenset(("ti", "super", "pcie", "sxm", "nvl", "ada", "s", "er", "ern", "sxm5", "sxm4"))
"""Words behind the name of a card that are part of it."""
_COUNTS = frozenset(("a", "an", "one", "single", "x", "ne", "eine", "einer", "einem", "una", "un", "张", "块"))
"""Words before the name of a card that count one, and that make a number like 3090 a name."""


def hardware(scene: SentenceContext) -> Iterator[Evidence]:
    """Yield cards, their number and memory. Marks the words it has read as taken."""
    counts = [(n, end) for n in scene.numbers if n.start not in scene.sentence.quoted and (end := _counts(scene, n))]
    covered = {at for n, end in counts for at in range(n.start, end)}
    for at in range(len(scene.sentence.words)):
        named = card(scene, at)
        if named and at not in scene.sentence.quoted:
            yield from _named(scene, at, *named, counted=at in covered)
    for number in scene.numbers:
        unit = _bytes(scene, number)
        if unit and number.start not in scene.taken and _is_memory(scene, number, unit):
            end = number.end + 1
            scene.taken.update(range(number.start, end))
            ram = scene.has("near:ram", end, min(end + 3, len(scene.sentence.words)))
            field = "hardware.cpu_ram_gb" if ram else "hardware.memory_gb"
            yield scene.evidence(field, number.value * unit / 1e9, number.start, end, number=number)
    yield from _counted(scene, counts)
    for match in scene.named("unit:gpu"):
        if scene.scopes.negated(match.start, match.end) and not covered & set(range(match.start, match.end)):
            yield scene.evidence("hardware.gpus", 0, match.start, match.end)
    if (
        not counts
        and not scene.named("unit:gpu")
        and not any(card(scene, at) for at in range(len(scene.sentence.words)))
    ):
        yield from _without_gpu(scene)


def _without_gpu(scene: SentenceContext) -> Iterator[Evidence]:
    """Yield that there are no cards, where a machine is named that has none: `one laptop CPU`, `CPU only`."""
    for match in scene.named("unit:cpu")[:1]:
        if not scene.scopes.negated(match.start, match.end):
            yield scene.evidence("hardware.gpus", 0, match.start, match.end)


def _counts(scene: SentenceContext, number: Number) -> int:
    """Return the word behind the cards that a whole number counts, or 0."""
    whole = number.value == int(number.value) and 0 <= number.value < 1e6 and not number.share and not number.letter
    return _cards_end(scene, number) if whole and number.start not in scene.taken else 0


def _named(scene: SentenceContext, at: int, name: str, end: int, counted: bool) -> Iterator[Evidence]:
    """Yield a card and its memory by the list of GPUs; the memory is vague where the name has two sizes."""
    words = scene.sentence.words
    begin = at - 1 if at and words[at - 1] in ("rtx", "gtx", "geforce", "nvidia") else at
    scene.taken.update(range(begin, end))
    sizes = gpus.sizes_by_word()[name]
    yield scene.evidence("hardware.gpu", name.upper() if not name.isdigit() else f"RTX {name}", begin, end)
    size = Number(sizes[0], begin, end, sizes[0], sizes[-1], len(sizes) > 1)
    yield scene.evidence("hardware.memory_gb", float(sizes[0]), begin, end, number=size, vague=True)
    if not counted and begin and words[begin - 1] in _COUNTS:
        yield scene.evidence("hardware.gpus", 1, begin - 1, end)


def _counted(scene: SentenceContext, counts: list[tuple[Number, int]]) -> Iterator[Evidence]:
    """Yield the number of cards: nodes times cards where both are given."""
    if not counts:
        return
    nodes = [
        n for n in scene.numbers if any(m.start <= n.end + 1 and m.start >= n.end for m in scene.named("unit:node"))
    ]
    for number, end in counts:
        scene.taken.update(range(number.start, end))
        times = next((n for n in nodes if n.end <= number.start <= n.end + 5 and n.value > 1), None)
        start = times.start if times else number.start
        total = int(number.value * (times.value if times else 1))
        negated = scene.scopes.of(number.start, end) == "negated" and number.value > 0
        yield scene.evidence("hardware.gpus", total, start, end, "negated" if negated else "asserted", number)


def _bytes(scene: SentenceContext, number: Number) -> float:
    words = scene.sentence.words
    if number.end >= len(words) or number.share:
        return 0.0
    unit = words[number.end]
    if unit == "g" and (scene.sentence.joined(number.end)):
        return 1e9
    return BYTES.get(unit, 0.0)


def _is_memory(scene: SentenceContext, number: Number, unit: float) -> bool:
    """Return whether bytes are a card's: next to a card, or multiplied (8x80GB)."""
    words, size = scene.sentence.words, number.value * unit / 1e9
    if not 3 <= size <= 4100:
        return False
    low, high = max(number.start - 4, 0), min(number.end + 5, len(words))
    if words[number.start - 1 : number.start] == ("x",):
        return True
    if scene.has("near:ram", number.end, high) or scene.has("near:memory", low, high):
        return True
    if size > 300:
        return False
    return any(True for _ in scene.among("unit:gpu", max(low - 3, 0), high)) or any(
        card(scene, at) for at in range(low, high) if not number.start <= at < number.end
    )


def _cards_end(scene: SentenceContext, number: Number) -> int:
    """Return the word behind the cards that a number counts, or 0."""
    words, at = scene.sentence.words, number.end
    if _bytes(scene, number) or any(m.start == at for m in scene.named("unit:node")):
        return 0
    if at < len(words) and words[at] == "x" and at + 1 < len(words):
        follows = at + 1
        named = card(scene, follows) or card(scene, follows + 1)
        if named:
            return named[1]
        after = next((n for n in scene.numbers if n.start == follows), None)
        if after and _bytes(scene, after):
            return after.end + 1
        at = follows
    for place in range(at, min(at + 6, len(words))):
        if any(m.start == place for m in scene.named("unit:node")):
            return 0
        named = card(scene, place)
        if named:
            return named[1]
        here = next((m for m in scene.named("unit:gpu") if m.start == place), None)
        if here:
            return here.end
        number_here = next((n for n in scene.numbers if n.start == place), None)
        if number_here and _bytes(scene, number_here):
            continue
        if scene.sentence.kinds[place] == "mark" or words[place] in ("and", "with", "und", "mit", "y", "con", "of"):
            return 0
    return 0
