"""Rows for the tests of the data lints: sound ones, and for every id of the catalogue some in which it is found."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from align.core.data.lint.eval_overlap import Suite
from align.core.data.lint.linter import LintOptions
from align.schemas.records import Record

_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend "
)
WORDS = _WORDS.split()


def prose(seed: int, count: int = 30) -> str:
    """Sentences of common words, the same for the same seed."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(count)).capitalize() + "."


def completion(number: int, prompt: str | None = None, answer: str | None = None, **columns: Any) -> Record:
    """A sound row, but for what is given."""
    return Record(
        "completion",
        f"train.jsonl:{number + 1}",
        prompt=prose(2 * number, 12) if prompt is None else prompt,
        completion=prose(2 * number + 1) if answer is None else answer,
        columns={"licence": "cc-by-4.0", **columns},
    )


def text(number: int, said: Any) -> Record:
    """A document, or a conversation."""
    return Record("text", f"train.jsonl:{number + 1}", text=said, columns={"licence": "cc-by-4.0"})


def talk(*turns: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    """Messages of (role, content)."""
    return [{"role": role, "content": content, **more} for role, content in turns]


def pair(number: int, chosen: str, rejected: str, margin: float | None = None, prompt: str | None = None) -> Record:
    """A preference."""
    return Record(
        "preference",
        f"train.jsonl:{number + 1}",
        prompt=prose(number, 12) if prompt is None else prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        columns={"licence": "cc-by-4.0", "judge": "people"},
    )


def unpaired(number: int, label: bool) -> Record:
    """A single answer that is good or bad."""
    columns = {"licence": "cc-by-4.0", "judge": "people"}
    return Record("unpaired", f"train.jsonl:{number + 1}", prompt=prose(number), completion=prose(-1 - number),
                  label=label, columns=columns)  # fmt: skip


SOUND = [completion(n) for n in range(60)]


def pairs(count: int = 60) -> list[Record]:
    """Sound preferences: both answers of about the same length and kind."""
    return [pair(n, prose(1000 + 2 * n), prose(1001 + 2 * n)) for n in range(count)]


@dataclass
class Example:
    """Rows, and how many of what the finding should count."""

    rows: list[Record]
    count: int
    options: LintOptions = field(default_factory=LintOptions)


def _one(prompt: str | None = None, answer: str | None = None) -> Example:
    return Example([*SOUND, completion(60, prompt, answer)], 1)


def _asked(*turns: tuple[str, str], **more: Any) -> Example:
    sound = [text(n, talk(("user", prose(3 * n)), ("assistant", prose(3 * n + 1)))) for n in range(20)]
    return Example([*sound, text(20, talk(*turns, **more))], 1)


_EVAL = Suite("exam", [prose(7000 + n, 20) for n in range(50)])
_GERMAN = "Das ist ein ganz gewöhnlicher Satz über das Wetter und die Leute, die darüber nie ein Wort verlieren wollen."
_HEADER = "Copyright 2026 by the Example Company. All rights are kept."

EXAMPLES: dict[str, Example] = {
    "exact-duplicates": Example([*SOUND, completion(60, f"  {SOUND[3].prompt}\n".upper(), SOUND[3].completion)], 1),
    "near-duplicates": Example([*SOUND, completion(60, SOUND[3].prompt, f"{SOUND[3].completion} Indeed so.")], 1),
    "no-words": _one(answer="-- !"),
    "mojibake": _one(answer=f"{prose(1)} The cafÃ© is schÃ¶n, donâ€™t you think?"),
    "replacement-characters": _one(answer=f"{prose(1)} caf\ufffd."),
    "control-characters": _one(answer=f"{prose(1)}\x1b[31mred."),
    "template-tokens": _one(answer=f"{prose(1)}<|im_end|>"),
    "language-mix": Example([*SOUND, *(completion(60 + n, f"{_GERMAN} {n}", _GERMAN) for n in range(10))], 10),
    "over-max-length": Example([*SOUND, completion(60, answer=prose(1, 500))], 1,
                               LintOptions(count=lambda texts: [len(t.split()) for t in texts], max_length=100)),
    "pii": _one(answer=f"{prose(1)} Write to jane.doe@corp.org soon."),
    "secrets": _one(answer=f"{prose(1)} The key is AKIA" + "QRSTUVWX23456723."),
    "answer-in-prompt": _one(f"{prose(1)} The answer is {prose(2, 6)}", prose(2, 6)),
    "one-source": Example([completion(n, source="web" if n else "books") for n in range(40)], 39),
    "no-licence": Example([Record("text", f"a:{n}", text=prose(n, 60)) for n in range(3)], 0),
    "licence-restricts": Example([*SOUND, completion(60, licence="CC-BY-NC-4.0")], 1),
    "few-rows": Example(SOUND[:4], 4),
    "eval-overlap-exact": Example([*SOUND, completion(60, f"{_EVAL.prompts[3]} ".upper())], 1, LintOptions([_EVAL])),
    "eval-overlap-ngram": Example(
        [*SOUND, completion(60, f"Now then: {_EVAL.prompts[3]} Well?")], 1, LintOptions([_EVAL])
    ),
    "no-user": _asked(("system", "You are kind."), ("assistant", prose(1))),
    "some-system": _asked(("system", "You are kind."), ("user", prose(1)), ("assistant", prose(2))),
    "ends-without-answer": _asked(("user", prose(1)), ("assistant", prose(2)), ("user", prose(3))),
    "roles-repeat": _asked(("user", prose(1)), ("user", prose(2)), ("assistant", prose(3))),
    "unknown-message-key": _asked(("user", prose(1)), ("assistant", prose(2)), mood="glad"),
    "refusals": Example([*SOUND, *(completion(60 + n, answer=f"I’m sorry, but I can't do that. {prose(n)}")
                                   for n in range(5))], 5),
    "cut-off": _one(answer=f"{prose(1)[:-1]} and then it went to the"),
    "contradictory-answers": Example([*SOUND, completion(60, "Is the sky blue today?", "yes"),
                                      completion(61, "is the sky  blue today?", "no")], 2),
    "repeated-prompts": Example([*SOUND, completion(60, SOUND[0].prompt)], 1),
    "same-answers": Example([*pairs(), pair(60, prose(1), f"{prose(1).upper()} ")], 1),
    "contradictory-pairs": Example([*pairs(), pair(60, prose(1), prose(2), prompt="Which one is it?"),
                                    pair(61, prose(2), prose(1), prompt="Which one is it?")], 2),
    "length-bias": Example([pair(n, prose(n, 40 if n % 5 else 20), prose(-1 - n, 30)) for n in range(60)], 48),
    "same-opening": Example([pair(n, f"{prose(1, 9)} {prose(2 * n)}", f"{prose(1, 9)} {prose(2 * n + 1)}")
                             for n in range(40)], 40),
    "separable": Example([pair(n, f"{prose(2 * n)} Thanks for asking!", f"{prose(2 * n + 1)} Goodbye to you!")
                          for n in range(60)], 60),
    "ties": Example([*pairs(), pair(60, prose(1), prose(2), 0.0), pair(61, prose(3), prose(4), 1.0)], 1),
    "no-label-source": Example([Record("preference", "a:1", prompt="a b c", chosen="d e", rejected="f g")], 0),
    "one-label": Example([unpaired(n, True) for n in range(120)], 120),
    "labels-unbalanced": Example([unpaired(n, n > 0) for n in range(120)], 119),
    "boilerplate": Example([text(n, f"{prose(n, 80)}\n{_HEADER}") for n in range(30)], 1),
    "low-quality": Example([*(text(n, prose(n, 80)) for n in range(30)), text(30, "12 34 | 56 -- 78 " * 30)], 1),
    "short-documents": Example([*(text(n, prose(n, 80)) for n in range(30)), text(30, "Too short.")], 1),
    "fertility": Example([text(n, prose(n, 80)) for n in range(30)], 30 * 80 * 3,
                         LintOptions(count=lambda texts: [3 * len(t.split()) for t in texts])),
}  # fmt: skip
