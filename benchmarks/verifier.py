"""Verifications a second of the math verifier in its workers, and what a bomb costs.

    python benchmarks/verifier.py

Normal answers: integers, decimals, fractions, roots, multiples of pi, polynomials, pairs, intervals and sets, eight
answers to each gold as a group of samples has, two of them wrong. A second figure has integers alone, as GSM8K has.
Then 400 answers with 20 that hang. Writes results/verifier.json.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.worker_pool import Workers
from align.plugins.rewards.math import Math
from align.schemas.run import RewardChoice

KINDS = [
    ("{n}", "{n}"),
    ("{n}.5", r"\frac{{{m}}}{{2}}"),
    (r"\frac{{{n}}}{{7}}", r"\dfrac{{{n}}}{{7}}"),
    (r"{n}\sqrt{{3}}", r"\sqrt{{3}}\cdot {n}"),
    (r"{n}\pi", r"{n} \pi"),
    ("x^2+{n}x", "x(x+{n})"),
    ("({n}, {m})", "({n},{m})"),
    ("[{n}, {m})", r"{n} \le x < {m}"),
    (r"\{{{n}, {m}\}}", "{m}, {n}"),
    ("{n}", "x = {n}"),
]


def answers(kinds: list[tuple[str, str]], prompts: int) -> list[Answer]:
    """Eight answers to each of as many prompts, the last two wrong."""
    made = []
    for i in range(prompts):
        gold, form = kinds[i % len(kinds)]
        n = 2 * i + 3
        for k in range(8):
            said = form.format(n=n + (k > 5), m=2 * (n + (k > 5)) + 1)
            text = f"We add the two numbers and simplify, step by step.\nThe answer is $\\boxed{{{said}}}$."
            made.append(Answer("q", text, text, columns={"solution": gold.format(n=n, m=2 * n + 1)}))
    return made


def measure(count: int, asked: list[Answer], seconds: float) -> dict[str, object]:
    """Score them once to warm up and once by the clock, with other numbers."""
    with tempfile.TemporaryDirectory() as cache:
        workers = Workers(RewardChoice(type="math"), seconds, count=count, place=RewardContext(Path(cache)))
        try:
            workers.score(asked[: len(asked) // 4])
            started = time.perf_counter()
            said = workers.score(asked[len(asked) // 4 :])
            took = time.perf_counter() - started
        finally:
            workers.close()
    return {
        "workers": count,
        "verifications": len(said),
        "seconds": round(took, 3),
        "per_second_per_worker": round(len(said) / took / count),
        "outcomes": dict(Counter(score.outcome for score in said)),
    }


def per_cpu_second(asked: list[Answer]) -> int:
    """Verifications a second of processor time in this process, which other load does not change much."""
    math = Math(Math.Config())
    math.open(RewardContext(Path()))
    math.score(asked[: len(asked) // 4])
    started = time.process_time()
    said = math.score(asked[len(asked) // 4 :])
    return round(len(said) / (time.process_time() - started))


def main() -> None:
    hang = r"\boxed{2\sin(60x)\cos(60x)}"  # right, but only for those who wait for sympy's proof
    bomb = Answer("q", hang, hang, columns={"solution": r"\sin(120x)"})
    mixed = [bomb if i % 20 == 10 else answer for i, answer in enumerate(answers(KINDS[:1], 67)[:533])]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "mixed_notations_per_cpu_second": per_cpu_second(answers(KINDS, 240)),
        "integers_per_cpu_second": per_cpu_second(answers(KINDS[:1], 480)),
        "mixed_notations": measure(1, answers(KINDS, 240), 3.0),
        "integers": measure(1, answers(KINDS[:1], 480), 3.0),
        "mixed_notations_two_workers": measure(2, answers(KINDS, 240), 3.0),
        "bombs_deadline_half_a_second": measure(2, mixed, 0.5),
    }
    place = Path(__file__).parent / "results" / "verifier.json"
    place.write_text(json.dumps(results, indent=2) + "\n")
    print(place.read_text())


if __name__ == "__main__":
    main()
