"""Numbers with a unit other than data: parameters, money, time, shares, rules, lengths."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.facts import Evidence
from align.advisor.text.hanzi import Number
from align.advisor.text.hardware import FAMILIES
from align.advisor.text.scene import Scene

PHRASE = 7
"""Words behind a number in which its noun stands."""
LEFT = 5
"""Words before a number in which its noun stands, where none is behind."""
DAYS = {"unit:day": 1.0, "unit:week": 7.0, "unit:month": 30.0}
SECONDS = {"unit:second": 1.0, "unit:millisecond": 0.001, "unit:minute": 60.0}


def head(scene: Scene, number: Number) -> tuple[frozenset[str], int]:
    """The last known noun of the phrase behind a number: its labels and where it ends; empty where there is none.

    Of nouns that end together the longest counts: `bullet points`, not `points`.
    """
    limit = phrase_end(scene, number)
    found = [m for m in scene.matches if number.end <= m.start and m.end <= limit and m.label.startswith(("unit:", "data:"))]
    if not found:
        return frozenset(), number.end
    end = max(m.end for m in found)
    start = min(m.start for m in found if m.end == end)
    return frozenset(m.label for m in found if m.end == end and m.start == start), end


def noun(scene: Scene, number: Number, kind: str) -> tuple[str, int] | None:
    """The noun behind a number, where it is of a kind (``unit:``, ``data:``): its label and where it ends."""
    labels, end = head(scene, number)
    named = sorted(label for label in labels if label.startswith(kind))
    return (named[0], end) if named else None


def phrase_end(scene: Scene, number: Number) -> int:
    """Where the noun phrase behind a number ends at the latest: before a stop word, a mark or another number."""
    s, at = scene.sentence, number.end
    starts = {n.start for n in scene.numbers}
    stops = {m.start for m in scene.named("phrase:stop")}
    while at < len(s.words) and at < number.end + (12 if s.kinds[min(at, len(s.words) - 1)] == "han" else PHRASE):
        if (
            at in starts
            or at in stops
            or (s.kinds[at] == "mark" and s.words[at] not in ("->", "→", "+", "/", "-", "&"))
        ):
            break
        at += 1
    return at


def quantities(scene: Scene) -> Iterator[Evidence]:
    """Everything that a number says of other things than data and cards. Marks the words it has read as taken."""
    for number in scene.numbers:
        if number.start in scene.sentence.quoted or scene.is_name(number):
            scene.taken.update(range(number.start, number.end))
        if number.start in scene.taken:
            continue
        found = list(_of(scene, number))
        if found:
            scene.taken.update(range(number.start, number.end))
            yield from found


def _of(scene: Scene, number: Number) -> Iterator[Evidence]:
    if number.share:
        yield from _share(scene, number)
        return
    for reader in (_params, _money, _time, _length, _rules, _samples):
        found = reader(scene, number)
        if found is not None:
            yield from found
            return


def _params(scene: Scene, number: Number) -> list[Evidence] | None:
    words = scene.sentence.words
    named = noun(scene, number, "unit:params")
    behind = noun(scene, number, "unit:tokens")
    size = number.letter in ("b", "m") and (1e7 <= number.value <= 3e12)
    if behind or not (size or named) or number.value < 1e6:
        return None
    if not named:
        after = words[number.end : number.end + 2]
        if (
            (after
            and (after[0] in ("of", "de", "von") or after[0] in ("$", "€")))
            or words[number.start - 1 : number.start] in (("$",), ("€",))
        ):
            return None
        if noun(scene, number, "data:") or noun(scene, number, "unit:money"):
            return None
    end = named[1] if named else number.end
    evidence = [scene.evidence("model.params_b", number.value / 1e9, number.start, end, number=number)]
    for at in range(max(number.start - 6, 0), min(number.end + 3, len(words))):
        if words[at].rstrip("0123456789.") in FAMILIES:
            start, stop = min(at, number.start), max(at + 1, number.end)
            evidence.append(scene.evidence("model.name", scene.sentence.quote(start, stop)[0], start, stop))
            break
    return evidence


def _money(scene: Scene, number: Number) -> list[Evidence] | None:
    words, start, end = scene.sentence.words, number.start, number.end
    if number.value == 0 and any(m.end <= start <= m.end + 3 for m in scene.named("near:budget")):
        return [scene.evidence("constraints.budget_usd", 0.0, start, end)]
    sign = next(
        (w for w in (*words[max(start - 1, 0) : start], *words[end : end + 1]) if w in ("$", "€", "£", "¥")), ""
    )
    unit = next(
        (m for m in scene.named("unit:money") if start - 2 <= m.start <= end and (m.start >= end or m.end <= start)),
        None,
    )
    if not (sign or unit) or not scene.has("near:budget", 0, len(words), denied=True):
        return None
    dollars = sign == "$" or (
        unit is not None and words[unit.start] in ("usd", "dollar", "dollars", "bucks", "grand", "dólares", "美元")
    )
    value = number.value * (1000 if unit is not None and words[unit.start] == "grand" else 1)
    low = min(start, unit.start) if unit else max(start - 1, 0) if words[start - 1 : start] == (sign,) else start
    high = max(end, unit.end) if unit else end + (words[end : end + 1] == (sign,))
    return [scene.evidence("constraints.budget_usd", value, low, high, number=number, vague=not dollars)]


def _time(scene: Scene, number: Number) -> list[Evidence] | None:
    s, end = scene.sentence, number.end
    unit = next((m for m in scene.matches if m.start == end and m.label in (*DAYS, *SECONDS)), None)
    if unit is None:
        return None
    low = max(number.start - 9, 0)
    if unit.label in SECONDS:
        if not scene.has("near:latency", low, min(unit.end + 6, len(s.words)), denied=True):
            return []
        value = number.value * SECONDS[unit.label]
        return [scene.evidence("constraints.latency_s", value, number.start, unit.end, number=number)]
    if scene.has("near:deadline", low, min(unit.end + 4, len(s.words)), denied=True):
        value = number.value * DAYS[unit.label]
        return [scene.evidence("constraints.deadline_days", value, number.start, unit.end, number=number)]
    return []


def _length(scene: Scene, number: Number) -> list[Evidence] | None:
    """Sequence lengths; prompts, chunks and answers of so many tokens are lengths, not data."""
    unit = noun(scene, number, "unit:length")
    low = max(number.start - 5, 0)
    if unit is None or number.value > 2_000_000 or number.letter in ("b",):
        return None
    near = scene.has("near:length", low, min(unit[1] + 3, len(scene.sentence.words)), denied=True)
    if near and number.value >= 128:
        return [
            scene.evidence("training.max_length", int(number.value), number.start, unit[1], number=number, vague=True)
        ]
    return [] if near else None


def _rules(scene: Scene, number: Number) -> list[Evidence] | None:
    unit = noun(scene, number, "unit:")
    if number.value != int(number.value) or not 1 <= number.value <= 500 or number.letter:
        return None
    if unit and unit[0] == "unit:rule":
        start, end = number.start, unit[1]
    elif unit is None and not noun(scene, number, "data:"):
        before = [m for m in scene.named("unit:rule") if number.start - LEFT <= m.start and m.end <= number.start]
        between = scene.sentence.words[before[-1].end : number.start] if before else ()
        if (
            not before
            or len(between) > 3
            or "," in between
            or scene.sentence.kinds[number.start - 1] == "number"
            or (not number.plain and not between and scene.sentence.kinds[number.start] != "han")
            or (not between and scene.sentence.kinds[number.start] != "han")
        ):
            return None
        start, end = before[-1].start, number.end
    else:
        return None
    if scene.has("rules:singled", max(number.start - 1, 0), end + 3, denied=True):
        return None
    status = "negated" if scene.scopes.of(start, end) == "negated" else "asserted"
    return [scene.evidence("behaviour.rules_count", int(number.value), start, end, status, number)]  # type: ignore[arg-type]


def _samples(scene: Scene, number: Number) -> list[Evidence] | None:
    words, end = scene.sentence.words, number.end
    per = [m for m in scene.named("near:per") if end <= m.start <= end + 4]
    if noun(scene, number, "unit:request"):
        for m in per:
            day = next((d for d in scene.matches if d.start == m.end and d.label in DAYS), None)
            if day is not None:
                value = number.value / DAYS[day.label]
                return [scene.evidence("constraints.requests_per_day", value, number.start, day.end, number=number)]
    low = max(number.start - 3, 0)
    if 2 <= number.value <= 1024 and not number.vague and scene.has("near:samples", low, min(end + 7, len(words))):
        if scene.has("near:samples", low, number.end) or noun(scene, number, "data:") is None:
            return [
                scene.evidence("constraints.max_n", int(number.value), number.start, end, number=number, vague=True)
            ]
    return None


def _share(scene: Scene, number: Number) -> Iterator[Evidence]:
    words, s = scene.sentence.words, scene.sentence
    index = [n.start for n in scene.numbers if n.share].index(number.start)
    shares = [n for n in scene.numbers if n.share]
    low = shares[index - 1].end if index else 0
    high = shares[index + 1].start if index + 1 < len(shares) else len(words)
    clause = s.clauses[number.start]
    near_low = max(low, number.start - 9)
    if scene.has("near:not_metric", max(low, number.start - 4), min(high, number.end + 4), denied=True):
        return
    del clause
    target = _closest(scene, "near:target", number, near_low, min(high, number.end + 6))
    base = _closest(scene, "near:baseline", number, near_low, min(high, number.end + 7))
    if target is None and base is None:
        return
    if target is not None and (base is None or target <= base):
        yield scene.evidence("evals.target", number.value, number.start, number.end, number=number)
    else:
        yield scene.evidence("evals.baseline", number.value, number.start, number.end, number=number)


def _closest(scene: Scene, label: str, number: Number, low: int, high: int) -> int | None:
    distances = [
        (number.start - m.end) if m.end <= number.start else (m.start - number.end + 1)
        for m in scene.named(label)
        if m.start >= low and m.end <= high
    ]
    return min(distances, default=None)
