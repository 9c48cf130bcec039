"""Numbers with a unit other than data: parameters, money, time, rules, lengths, samples."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.project_facts import Evidence, Status
from align.advisor.text.hardware_mentions import FAMILIES
from align.advisor.text.nouns import noun, noun_before
from align.advisor.text.number import Number
from align.advisor.text.percentages import is_score, is_target, share
from align.advisor.text.sentence_context import SentenceContext

DAYS = {"unit:day": 1.0, "unit:week": 7.0, "unit:month": 30.0}
SECONDS = {"unit:second": 1.0, "unit:millisecond": 0.001, "unit:minute": 60.0}
DOLLARS = ("usd", "dollar", "dollars", "bucks", "grand", "dólares", "美元")
MOST_RULES = 500


def quantities(scene: SentenceContext) -> Iterator[Evidence]:
    """Yield the evidence of numbers about other things than data and cards. Marks the words it has read as taken."""
    for number in scene.numbers:
        if number.start in scene.sentence.quoted or scene.is_name(number):
            scene.taken.update(range(number.start, number.end))
        if number.start in scene.taken:
            continue
        found = _of(scene, number)
        if found is not None:
            scene.taken.update(range(number.start, number.end))
            yield from found
    for label, seconds in (("unit:one_second", 1.0), ("unit:half_second", 0.5)):
        for match in scene.named(label):
            yield scene.evidence("constraints.latency_s", seconds, match.start, match.end)


def _of(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    if number.share or is_target(scene, number) or is_score(scene, number):
        return share(scene, number)
    for reader in (_params, _money, _time, _length, _rate, _rules, _samples):
        found = reader(scene, number)
        if found is not None:
            return found
    return None


def _params(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    words = scene.sentence.words
    behind = noun(scene, number)
    named = behind.named("unit:params")
    model = number.letter == "b" or scene.has("near:model", max(number.start - 4, 0), number.end + 4, denied=True)
    size = number.letter in ("b", "m") and 1e7 <= number.value <= 3e12 and model
    if not (size or named) or number.value < 1e6:
        return None
    if not named:
        counted = behind.named("data:") or behind.named("unit:money") or behind.named("unit:tokens")
        before, after = words[number.start - 1 : number.start], words[number.end : number.end + 1]
        if counted or {"$", "€", "£"} & {*before, *after} or {"of", "de", "von"} & {*after}:
            return None
    end = behind.end if named else number.end
    evidence = [scene.evidence("model.params_b", number.value / 1e9, number.start, end, number=number)]
    for at in range(max(number.start - 6, 0), min(number.end + 3, len(words))):
        if words[at].rstrip("0123456789.") in FAMILIES:
            start, stop = min(at, number.start), max(at + 1, number.end)
            evidence.append(scene.evidence("model.name", scene.sentence.quote(start, stop)[0], start, stop))
            break
    return evidence


def _money(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    words, start, end = scene.sentence.words, number.start, number.end
    if number.value == 0 and any(m.end <= start <= m.end + 3 for m in scene.named("near:funds")):
        return [scene.evidence("constraints.budget_usd", 0.0, start, end)]
    sign = next((w for w in (*words[max(start - 1, 0) : start], *words[end : end + 1]) if w in "$€£¥"), "")
    unit = next((m for m in scene.named("unit:money") if m.start == end or m.end == start), None)
    if not (sign or unit):
        return None
    if not scene.has("near:budget", 0, len(words), denied=True):
        return []
    word = words[unit.start] if unit else ""
    value = number.value * (1000 if word == "grand" else 1)
    low = min(start, unit.start) if unit else start - (words[start - 1 : start] == (sign,))
    high = max(end, unit.end) if unit else end + (words[end : end + 1] == (sign,))
    dollars = sign == "$" or word in DOLLARS
    return [scene.evidence("constraints.budget_usd", value, low, high, number=number, vague=not dollars)]


def _time(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    s, end = scene.sentence, number.end
    unit = next((m for m in scene.matches if m.start == end and m.label in (*DAYS, *SECONDS)), None)
    if unit is None:
        return None
    low = max(number.start - 9, 0)
    if unit.label in SECONDS:
        high = next((at for at in range(unit.end, len(s.words)) if s.words[at] == ";"), len(s.words))
        if not scene.has("near:latency", low, min(unit.end + 6, high), denied=True):
            return []
        value = number.value * SECONDS[unit.label]
        return [scene.evidence("constraints.latency_s", value, number.start, unit.end, number=number)]
    if scene.has("near:deadline", low, min(unit.end + 4, len(s.words)), denied=True):
        value = number.value * DAYS[unit.label]
        return [scene.evidence("constraints.deadline_days", value, number.start, unit.end, number=number)]
    return []


def _length(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    """Sequence lengths; prompts, chunks and answers of so many tokens are lengths, not data."""
    unit = noun(scene, number)
    low = max(number.start - 5, 0)
    if not unit.named("unit:length") or number.value > 2_000_000 or number.letter == "b":
        return None
    if not scene.has("near:length", low, min(unit.end + 3, len(scene.sentence.words)), denied=True):
        return None
    if number.value < 128:
        return []
    return [scene.evidence("training.max_length", int(number.value), number.start, unit.end, number=number, vague=True)]


def _rate(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    """So many a day: of requests, or of anything, which is then no body of data."""
    unit = noun(scene, number)
    for per in scene.named("near:per"):
        period = next((d for d in scene.matches if d.start == per.end and d.label in DAYS), None)
        joined = scene.sentence.words[per.start - 1] in (
            "and",
            "und",
            "y",
            "，",
        )  # 2,900 rules and each month a new one
        if period is not None and unit.end <= per.start <= unit.end + 2 and not joined:
            value = number.value / DAYS[period.label]
            guess = unit.named("unit:request") is None
            if guess and value < 1:
                return []  # a new policy each month
            name = "constraints.requests_per_day"
            return [scene.evidence(name, value, number.start, period.end, number=number, vague=guess)]
    return None


def _rules(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    unit = noun(scene, number)
    if number.value != int(number.value) or not 1 <= number.value <= MOST_RULES or number.letter:
        return None
    if scene.measured_on(number):
        return None
    if unit.named("unit:rule"):
        start, end = number.start, unit.end
    elif unit.labels <= {"data:weak"} and (before := noun_before(scene, number, "unit:rule")):
        start, end = before.start, number.end
    else:
        return None
    if scene.has("rules:singled", max(number.start - 3, 0), end + 3, denied=True):
        return []
    status: Status = "negated" if scene.scopes.negated(start, end) else "asserted"
    return [scene.evidence("behaviour.rules_count", int(number.value), start, end, status, number)]


def _samples(scene: SentenceContext, number: Number) -> list[Evidence] | None:
    words, end = scene.sentence.words, number.end
    low = max(number.start - 3, 0)
    if not 2 <= number.value <= 1024 or number.vague:
        return None
    before = scene.has("near:samples", low, end)
    if before or (scene.has("near:samples", end, min(end + 7, len(words))) and not noun(scene, number).named("data:")):
        return [scene.evidence("constraints.max_n", int(number.value), number.start, end, number=number, vague=True)]
    return None
