"""How often the gate errs: exact sums over all counts, and 20,000 simulated gates.

    python -m benchmarks.gate

`unchanged`: shares of gates of two runs of one model in which anything is called regressed (at most 5 % is promised) or
improved. `damaged`: shares in which the one damaged domain of four is named, and any other. `worse_by_the_margin`: the
chance to pass of a candidate that is worse by exactly the margin (5 % is promised), with Tango's interval, which the
gate takes for 0/1 scores, and with Student's. `power`: the chance to pass of an unchanged one at the rows that `align`
says it needs for 80 %. `coverage`: of 95 % intervals, with clusters and as if the rows were independent.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from align.core.evaluation.power import rows_needed, rows_needed_for_shares
from tests.core.evaluation import simulations

RESULT = Path(__file__).parent / "results/gate.json"
REPEATS = 20_000
WORSE = [(30, 0.2, 0.15), (50, 0.2, 0.15), (100, 0.06, 0.05), (198, 0.1, 0.05), (344, 0.05, 0.03), (500, 0.1, 0.03)]
WORSE += [(1000, 0.02, 0.015), (2000, 0.1, 0.02), (2000, 0.24, 0.02)]
PLANS = [(q, margin) for q in (0.05, 0.1, 0.2) for margin in (0.02, 0.03, 0.05)]


def measure() -> dict[str, object]:
    """All figures, shares in 0 to 1."""
    started = time.perf_counter()
    caught, others = simulations.damaged(REPEATS // 10, seed=2)
    figures: dict[str, object] = {
        "repeats": REPEATS,
        "unchanged": asdict(simulations.unchanged(REPEATS, seed=1)),
        "damaged": {"repeats": REPEATS // 10, "named": caught, "another named": others},
        "worse_by_the_margin": {
            "0/1 scores, exactly": [
                {
                    "rows": rows,
                    "disagreement": q,
                    "margin": margin,
                    "tango": _round(simulations.passed_exactly(rows, q, -margin, margin)),
                    "student": _round(simulations.passed_exactly(rows, q, -margin, margin, student=True)),
                }
                for rows, q, margin in WORSE
            ],
            "a domain of 500 and 500 rows": simulations.passed_combined(REPEATS, 3, (500, 500), 0.2, 0.06),
            "a domain of 30, 200 and 500 rows": simulations.passed_combined(REPEATS, 4, (30, 200, 500), 0.2, 0.06),
            "grades of 80 dialogues of two turns": simulations.passed_means(REPEATS, 5, 80, 2, 0.2),
            "means of 4 samples of 30 problems": simulations.passed_samples(REPEATS, 6, 30, 4, 0.1),
        },
        "power": [
            {
                "disagreement": q,
                "margin": margin,
                "rows": (rows := rows_needed_for_shares(q, margin)),
                "reached": _round(simulations.passed_exactly(rows, q, 0.0, margin)),
                "large-sample rows": (large := rows_needed(q, margin)),
                "reached with these": _round(simulations.passed_exactly(large, q, 0.0, margin)),
            }
            for q, margin in PLANS
        ],
        "coverage": [
            {
                "clusters": clusters,
                "rows in each": size,
                "between": between,
                "clustered": hit[0],
                "as if independent": hit[1],
            }
            for clusters, size, between in [(50, 20, 0.2), (80, 2, 1.0), (20, 5, 0.5), (8, 10, 0.5)]
            for hit in [simulations.covered(REPEATS, 7, clusters, size, between)]
        ],
    }
    return figures | {"seconds": round(time.perf_counter() - started)}


def _round(share: float) -> float:
    return round(share, 4)


if __name__ == "__main__":
    figures = measure()
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
