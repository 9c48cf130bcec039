"""Rows of our own in the published formats of the static benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, and return the file's path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mmlu_rows(subject: str, start: int, count: int) -> list[dict[str, Any]]:
    """Sums with four choices; the right one moves from A to D and round again."""
    rows = []
    for n in range(start, start + count):
        choices = [str(2 * n + (place - n) % 4) for place in range(4)]
        rows.append({"question": f" What is {n}+{n}? ", "subject": subject, "choices": choices, "answer": n % 4})
    return rows


MMLU = [*mmlu_rows("abstract_algebra", 0, 8), *mmlu_rows("anatomy", 20, 4)]
MMLU_SHOTS = [*mmlu_rows("anatomy", 50, 5), *mmlu_rows("abstract_algebra", 60, 6)]

TRUTHFULQA = [
    {
        "question": f"What do people call number {n}?",
        "mc1_targets": {"choices": [f"true {n}", f"false {n} a", f"false {n} b"], "labels": [1, 0, 0]},
        "mc2_targets": {
            "choices": [f"true {n}", f"true {n} too", f"false {n} a", f"false {n} b"],
            "labels": [1, 1, 0, 0],
        },
    }
    for n in range(6)
]


def gpqa_row(n: int) -> dict[str, Any]:
    """A question whose right answer contains the word right."""
    return {
        "Record ID": f"rec{n:03}",
        "Question": f"Which answer of question {n} is right?",
        "Correct Answer": f"the right  one {n}",
        **{f"Incorrect Answer {k}": f"wrong {k} of {n} [title]" for k in (1, 2, 3)},
        "High-level domain": "Physics" if n % 2 else "Biology",
        "Explanation": "not read",
    }


GPQA = [gpqa_row(n) for n in range(12)]


def mmlu_pro_row(n: int, category: str) -> dict[str, Any]:
    """A sum with up to ten options, padded with N/A."""
    options = [str(2 * n + (place - n % 7)) for place in range(7)]
    return {
        "question_id": n,
        "question": f"What is {n}+{n}?",
        "options": [*options, "N/A", "N/A", "N/A"],
        "answer": "ABCDEFG"[n % 7],
        "answer_index": n % 7,
        "cot_content": f"A: Let's think step by step. Twice {n} is wanted. The answer is ({'ABCDEFG'[n % 7]}).",
        "category": category,
        "src": "ours",
    }


MMLU_PRO = [mmlu_pro_row(n, "math" if n < 6 else "computer science") for n in range(8)]
MMLU_PRO_SHOTS = [mmlu_pro_row(100 + n, "math" if n % 2 else "computer science") for n in range(10)]

GSM8K = [
    {
        "question": f"Ann has {n} apples and buys {n}.",
        "answer": f"She has {n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}",
    }
    for n in (3, 4, 600, 1200)
]
GSM8K[3]["answer"] = "She has 2400.\n#### 2,400"
GSM8K_SHOTS = [{"question": f"Bob counts to {n}.", "answer": f"That is {n}.\n#### {n}"} for n in range(10, 16)]

AIME_2024 = [
    {"ID": f"2024-I-{n}", "Problem": f"Find {n}+{n}.", "Solution": "Add.", "Answer": 2 * n} for n in (1, 36, 100, 200)
]
AIME_2025 = [{"problem": f"Find {n}+{n}.", "answer": f"{2 * n:03}", "id": str(n)} for n in (1, 36, 100, 200)]

MATH = [
    {
        "problem": "Find half of one.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"It is $\boxed{\frac{1}{2}}$.",
    },
    {
        "problem": "Solve $x^2=2$, $x>0$.",
        "level": "Level 2",
        "type": "Algebra",
        "solution": r"So $x=\boxed{\sqrt{2}}$.",
    },
    {"problem": "Find 2+3.", "level": "Level 1", "type": "Number Theory", "solution": r"Add: $\boxed{5}$."},
]
MATH_500 = [
    {
        "problem": "Find 2+3.",
        "solution": r"$\boxed{5}$",
        "answer": "5",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "a/1",
    },
    {"problem": "A point?", "solution": "", "answer": r"\left( 3, \frac{\pi}{2} \right)", "subject": "X", "level": 2},
]

_NOTHING = {"num_words": None, "relation": None, "keywords": None, "num_sentences": None, "language": None}
IFEVAL = [
    {
        "key": 1000,
        "prompt": "Write without commas, and mention the word sea.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [_NOTHING, {**_NOTHING, "keywords": ["sea"]}],
    },
    {
        "key": 1001,
        "prompt": "Write at least 3 sentences.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{**_NOTHING, "num_sentences": 3, "relation": "at least"}],
    },
    {
        "key": 1002,
        "prompt": "Answer in English, all in lower case, wrapped in quotation marks.",
        "instruction_id_list": ["change_case:english_lowercase", "startend:quotation", "punctuation:no_comma"],
        "kwargs": [{}, {}, {}],
    },
    {
        "key": 1003,
        "prompt": "Use two words in capitals.",
        "instruction_id_list": ["change_case:capital_word_frequency"],
        "kwargs": [{"capital_frequency": 2, "capital_relation": "at least"}],
    },
]
IFEVAL_RIGHT = {
    1000: "The sea is wide and blue.",
    1001: "The sea is wide. The sky is blue. The wind is cold.",
    1002: '"this is a plain sentence about the weather and the sea."',
    1003: "This is VERY GOOD news.",
}
