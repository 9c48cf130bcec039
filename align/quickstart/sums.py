"""The quickstart's world: sums of two two-digit numbers, in four files that teach four different things.

pages        what a textbook prints: arithmetic, but not how to answer anybody            (pretrain)
answers      questions, answered by people of whom half show the sum and half mumble      (sft)
preferences  the same answer given both ways, and which of the two is liked better        (dpo)
prompts      questions and results: what the model answers by itself is checked           (grpo)

People who answer are no textbook: they forget to carry more often than not. What is learned from them, and what they
like, is how to answer; that it be right is learned from the check.

Some sums are kept out of all of them, whichever way round they are written; all measuring is done on those.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

Sum = tuple[int, int]

CARELESS, CAREFUL = "What is {a}+{b}?", "Please work out {a}+{b}."
"""Two ways to ask. Most people answer the first carelessly and the second with care."""

TAUGHT = ("{a}+{b}? ", "{a}+{b} is what? ", "Add {a}+{b}. Well? ", "{a}+{b}, the teacher asks. ")
"""Questions before an answer in a textbook: at several distances, so that what is learned is to look for the
numbers, not to count back to where they stand."""

SHOWN = "{a}+{b}={c}."
"""The answer that is liked: it says the sum."""

MUMBLED = "Hmm, {c}?"
"""The answer that is not."""

FORGETS = 0.6
"""The rate at which the people who answer forget to carry: ``27+15=32.``"""

HELD_OUT = 300


def split_sums() -> tuple[list[Sum], list[Sum]]:
    """(train, held out): sums of two two-digit numbers, not both whole tens, that stay below 100; shuffled.

    ``a + b`` and ``b + a`` fall on the same side, so that a held-out sum cannot be looked up. The split does not
    depend on any seed: all runs are measured on the same questions.
    """
    twins = [(a, b) for a in range(10, 90) for b in range(a, 100 - a) if a % 10 or b % 10]
    random.Random(0).shuffle(twins)
    return [s for a, b in twins[HELD_OUT:] for s in sorted({(a, b), (b, a)})], twins[:HELD_OUT]


def say(manner: str, pair: Sum, lost: int = 0) -> str:
    """A question or an answer, in words: a right one, or one that has ``lost`` a ten."""
    a, b = pair
    return manner.format(a=a, b=b, c=a + b - lost)


def _lost(pair: Sum, rng: random.Random) -> int:
    """Return the result of somebody who forgets to carry."""
    a, b = pair
    return 10 if a % 10 + b % 10 >= 10 and rng.random() < FORGETS else 0


def answer_in(text: str) -> int | None:
    """The last whole number of an answer, or None: ``27+15=42.`` -> 42."""
    numbers = "".join(c if c in "0123456789" else " " for c in text).split()
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 5 else None


def pages(sums: Sequence[Sum], count: int, rng: random.Random) -> Iterable[dict[str, Any]]:
    """Rows ``{"text"}`` of eight lines: six sums, and in any place one question to the teacher and one to a pupil.

    Three in ten of the sums are easy (single digits, whole tens): carrying is then learned in half the steps.
    """
    for _ in range(count):
        lines = [say(SHOWN, _easy(rng) if rng.random() < 0.3 else rng.choice(sums)) for _ in range(6)]
        for manner in (SHOWN, MUMBLED):
            pair = rng.choice(sums)
            lines.insert(rng.randrange(len(lines) + 1), say(rng.choice(TAUGHT) + manner, pair))
        yield {"text": "\n".join(lines)}


def _easy(rng: random.Random) -> Sum:
    tens = rng.randrange(1, 9)
    return rng.choice([(rng.randrange(1, 10), rng.randrange(1, 10)), (10 * tens, 10 * rng.randrange(1, 10 - tens))])


def answers(sums: Sequence[Sum], count: int, rng: random.Random) -> Iterable[dict[str, Any]]:
    """Rows ``{"messages"}``: questions and answers, half of them mumbled."""
    for pair in rng.choices(sums, k=count):
        careful, usual = rng.random() < 0.5, rng.random() < 0.9
        question = say(CAREFUL if careful else CARELESS, pair)
        answer = say(SHOWN if careful == usual else MUMBLED, pair, _lost(pair, rng))
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def preferences(sums: Sequence[Sum], count: int, rng: random.Random) -> Iterable[dict[str, Any]]:
    """Rows ``{"prompt", "chosen", "rejected"}``: the same result, right or not, shown and mumbled."""
    for pair in rng.choices(sums, k=count):
        lost = _lost(pair, rng)
        yield {
            "prompt": [{"role": "user", "content": say(rng.choice((CARELESS, CAREFUL)), pair)}],
            "chosen": [{"role": "assistant", "content": say(SHOWN, pair, lost)}],
            "rejected": [{"role": "assistant", "content": say(MUMBLED, pair, lost)}],
        }


def prompts(sums: Sequence[Sum], count: int, rng: random.Random) -> Iterable[dict[str, Any]]:
    """Rows ``{"prompt", "solution"}``: the question, and the number that a right answer comes to."""
    for a, b in rng.choices(sums, k=count):
        question = say(rng.choice((CARELESS, CAREFUL)), (a, b))
        yield {"prompt": [{"role": "user", "content": question}], "solution": str(a + b)}


def questions(sums: Sequence[Sum]) -> Iterable[dict[str, Any]]:
    """Rows ``{"id", "prompt", "solution"}`` to measure by: one question for each sum, asked in turn in both ways."""
    for i, (a, b) in enumerate(sums):
        prompt = [{"role": "user", "content": say((CARELESS, CAREFUL)[i % 2], (a, b))}]
        yield {"id": f"{a}+{b}", "prompt": prompt, "solution": str(a + b)}
