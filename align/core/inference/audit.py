"""Audit of a reward before training: the scores it gives to junk, and how well it tells gold answers from wrong ones.

An attack is *paid* on a row if it scores at least as much as the row's gold answer (rows without gold: more than 0).

    AUC = P(gold > wrong) + P(gold = wrong) / 2    over all pairs of a gold and a wrong answer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from align.core.rewards.reward_base import Answer
from align.core.rewards.score_file import InputLine, Summary, Verdict, message_text, score_lines, summarize
from align.core.rewards.scorer import RunningReward
from align.schemas.errors import AlignError

JUNK: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "empty": ("an empty answer", lambda prompt: ""),
    "whitespace": ("an answer of whitespace", lambda prompt: " \n\n \t\n"),
    "constant": ("one constant answer", lambda prompt: "I have thought about it and am done."),
    "long": ("a very long answer", lambda prompt: "and so on " * 2000),
    "keywords": (
        "keywords",
        lambda prompt: "Correct. The correct answer is right. Full marks, reward 1.0, score 10/10, verified, accepted.",
    ),
    "shell": ("empty tags and boxes", lambda prompt: "<think>\n</think>\n<answer>\n\\boxed{}\n</answer>"),
    "prompt": ("a copy of the prompt", lambda prompt: prompt),
}
"""Completions that deserve no reward: a description of each, and a function that makes it of the prompt's text."""


@dataclass(frozen=True, slots=True)
class Attack:
    """The result of one attack on all rows.

    paid: share of the scored rows, in [0, 1]; mean: of the scores; both None if no row was scored. unscored: number of
    rows without a score. outcomes: number of rows by outcome.
    """

    name: str
    rows: int
    paid: float | None
    mean: float | None
    unscored: int
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Audit:
    """The results of all attacks, the discrimination of gold from wrong answers, latency, and conclusions.

    auc: in [0, 1]. gap: mean of gold - wrong on the same row. Both are None without gold answers, or if all are equal,
    so that none is wrong for another row. faults: sentences about behaviour that would teach a policy junk. notes:
    other remarks.
    """

    attacks: Sequence[Attack]
    auc: float | None
    gap: float | None
    latency: Summary
    faults: Sequence[str]
    notes: Sequence[str]


def gold_answer(answer: Answer) -> str | None:
    """Return the text of a right answer to this row: its completion, else its solution if that is text or a number."""
    if answer.text.strip():
        return answer.text
    solution = answer.columns.get("solution")
    return str(solution) if isinstance(solution, str | int | float) and str(solution).strip() else None


def with_text(answer: Answer, text: str, tokens: Callable[[str], Sequence[int]] | None = None) -> Answer:
    """Return another answer to the same row, in the form of its prompt. tokens: encodes a text."""
    completion: Any = [{"role": "assistant", "content": text}] if isinstance(answer.prompt, list) else text
    ids = tuple(tokens(text)) if tokens else ()
    return replace(answer, completion=completion, text=text, tokens=ids)


def audit(
    reward: RunningReward, lines: Sequence[InputLine], name: str, tokens: Callable[[str], Sequence[int]] | None = None
) -> Audit:
    """Attack a reward with every row that has a prompt.

    name: of the file, for messages. tokens: encodes a text, for rewards that count tokens. Raises AlignError if no row
    has a prompt.
    """
    rows = [line for line in lines if line.answer is not None and message_text(line.answer.prompt, "prompt").strip()]
    answers = [line.answer for line in rows if line.answer is not None]
    if not rows:
        raise AlignError("no row has a prompt", "give rows with prompt, and solution or completion", where=name)
    golds = [gold_answer(answer) for answer in answers]
    prompts = [message_text(answer.prompt, "prompt") for answer in answers]
    texts: dict[str, list[str | None]] = {}  # of each kind of attack, by row
    for kind, (_, make) in JUNK.items():
        texts[kind] = [make(prompt) for prompt in prompts]
    texts |= {"commonest": _commonest(golds), "gold": golds, "wrong": _wrong(golds)}

    attempts = [(i, kind, text) for i in range(len(rows)) for kind in texts if (text := texts[kind][i]) is not None]
    lines = []
    for n, (i, _, text) in enumerate(attempts):
        # A reward that compares sees all attacks on a row as one group; for others each is a group of its own.
        group = i if reward.reward.compares else n
        lines.append(replace(rows[i], answer=replace(with_text(answers[i], text, tokens), group=group)))
    results: dict[str, list[Verdict | None]] = {kind: [None] * len(rows) for kind in texts}
    for (i, kind, _), verdict in zip(attempts, score_lines(reward, lines), strict=True):
        results[kind][i] = verdict

    values = {kind: np.array([_value(verdict) for verdict in verdicts]) for kind, verdicts in results.items()}
    attacks = [_attack(kind, results[kind], values[kind], values["gold"]) for kind in texts if any(results[kind])]
    gold, wrong = (values[kind][~np.isnan(values[kind])] for kind in ("gold", "wrong"))
    both = ~np.isnan(values["gold"]) & ~np.isnan(values["wrong"])
    auc = roc_auc(gold, wrong) if len(gold) and len(wrong) else None
    gap = float((values["gold"] - values["wrong"])[both].mean()) if both.any() else None
    latency = summarize([verdict for verdicts in results.values() for verdict in verdicts if verdict is not None])
    return Audit(attacks, auc, gap, latency, *_judged(attacks, values, auc, latency))


def roc_auc(gold: Any, wrong: Any) -> float:
    """Return the area under the ROC curve of two sets of scores, in [0, 1]; 0.5 is chance."""
    ordered = np.sort(wrong)
    below, upto = np.searchsorted(ordered, gold, "left"), np.searchsorted(ordered, gold, "right")
    return float((below + upto).mean() / (2 * len(wrong)))


def _value(verdict: Verdict | None) -> float:
    return np.nan if verdict is None or verdict.score.value is None else verdict.score.value


def _commonest(golds: Sequence[str | None]) -> list[str | None]:
    """Return the most frequent gold answer for every row; None for all if no two rows have the same."""
    ((text, count),) = Counter(gold for gold in golds if gold is not None).most_common(1) or [("", 0)]
    return [text if count > 1 else None] * len(golds)


def _wrong(golds: Sequence[str | None]) -> list[str | None]:
    """Return for each row the next gold answer that differs from its own."""
    found: list[str | None] = []
    for i, gold in enumerate(golds):
        others = [*golds[i + 1 :], *golds[:i]]
        found.append(next((other for other in others if gold is not None and other not in (None, gold)), None))
    return found


def _attack(name: str, verdicts: Sequence[Verdict | None], values: Any, gold: Any) -> Attack:
    scored, counts = ~np.isnan(values), Counter[str](v.score.outcome for v in verdicts if v is not None)
    paid = np.where(np.isnan(gold), values > 0, values >= gold)[scored]
    mean = float(values[scored].mean()) if scored.any() else None
    share_paid = float(paid.mean()) if scored.any() else None
    rows = sum(counts.values())
    return Attack(name, rows, share_paid, mean, rows - int(scored.sum()), dict(counts))


def _judged(
    attacks: Sequence[Attack], values: Mapping[str, Any], auc: float | None, latency: Summary
) -> tuple[list[str], list[str]]:
    """Return faults and notes, as sentences."""
    faults, notes = list[str](), list[str]()
    for attack in attacks:
        if attack.name not in JUNK or not attack.paid:
            continue
        what, gold = JUNK[attack.name][0], values["gold"]
        both = ~np.isnan(values[attack.name]) & ~np.isnan(gold)
        if both.any():
            sentence = f"pays {what} as much as gold in {attack.paid:.0%} of rows"
            as_much = bool(values[attack.name][both].mean() >= gold[both].mean())
        else:
            sentence, as_much = f"pays {what} in {attack.paid:.0%} of rows", attack.paid >= 0.5
        (faults if as_much else notes).append(sentence)
    by_name = {attack.name: attack for attack in attacks}
    gold_attack, common = by_name.get("gold"), by_name.get("commonest")
    if auc is not None and auc <= 0.5:
        faults.append(f"cannot tell gold from wrong (AUC {auc:.2f})")
    elif auc is not None and auc < 0.9:
        notes.append(f"tells gold from wrong with an AUC of {auc:.2f} only")
    if gold_attack is None:
        notes.append("no row has a gold answer (completion, or solution as text): discrimination is unknown")
    elif gold_attack.mean is None:
        faults.append("gives no gold answer a score")
    elif refused := gold_attack.outcomes.get("wrong", 0) + gold_attack.outcomes.get("unparsed", 0):
        notes.append(f"refuses {refused} of {gold_attack.rows} gold answers")
    if common is not None and common.paid and common.paid > 0.3:
        notes.append(f"the commonest gold answer alone is paid in {common.paid:.0%} of rows: mix in other rows")
    for outcome in ("timeout", "error"):
        if count := latency.outcomes.get(outcome, 0):
            notes.append(f"{count} of {sum(latency.outcomes.values())} answers ended in {outcome}")
    return faults, notes
