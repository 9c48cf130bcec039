"""How often the alarms of online stages are false, and how soon they are true, on made-up traces.

    python -m benchmarks.watch

``tests/core/traces.py`` draws the traces. Gold's threshold is swept, since its alarm compares noisy numbers: false
alarms per 10,000 healthy phases, and the share of failing runs in which it is raised, with the phases until then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.core.online.monitor import Watcher
from align.schemas.run import Watch
from tests.core.traces import ALARM, FAILURES, Failure, healthy, trace

ONSET, LENGTH = 30, 150
RUNS = 200

Trace = Sequence[dict[str, float]]


def alarms(watch: Watch, run: Trace) -> list[tuple[int, str]]:
    """Phase and name of every alarm and hint."""
    watcher = Watcher(watch)
    return [(i, alarm.name) for i, now in enumerate(run, start=1) for alarm in watcher.look(i, now)]


def per_10_000(watch: Watch, runs: Iterable[Trace]) -> dict[str, float]:
    """Alarms per 10,000 phases, by name."""
    found: Counter[str] = Counter()
    phases = 0
    for run in runs:
        found.update(name for _, name in alarms(watch, run))
        phases += len(run)
    return {name: round(1e4 * count / phases, 2) for name, count in sorted(found.items())}


def recall(watch: Watch, failure: Failure, **options: float) -> dict[str, float | None]:
    """How many of the failing runs raise the right alarm, and how long after the onset."""
    wanted, delays = ALARM.get(failure, failure), []
    for seed in range(RUNS):
        run = trace(seed, LENGTH, failure, ONSET, **options)
        if when := [i for i, name in alarms(watch, run) if name == wanted and i > ONSET]:
            delays.append(when[0] - ONSET)
    median, latest = (float(np.median(delays)), float(max(delays))) if delays else (None, None)
    return {"raised": len(delays) / RUNS, "median_delay": median, "latest_delay": latest}


NULLS: dict[str, dict[str, float]] = {
    "gold rises": {"gain": 8},
    "gold flat": {"gain": 0},
    "gold flat, 8 groups": {"gain": 0, "groups": 8},
    "gold flat, standard errors reported at half their size": {"gain": 0, "reported": 0.5},
    "gold flat, its true level wandering by 0.5 standard errors": {"gain": 0, "wander": 0.5},
    "gold flat, its true level wandering by 1 standard error": {"gain": 0, "wander": 1},
}


def main() -> None:
    """Measure and write ``benchmarks/results/watch.json``."""
    curve: list[dict[str, Any]] = []
    for errors in (1, 2, 3, 4, 5):
        watch = Watch(gold=errors)
        curve.append(
            {
                "gold": errors,
                "false_per_10000": {
                    name: per_10_000(watch, healthy(RUNS, LENGTH, **options)).get("gold", 0.0)
                    for name, options in NULLS.items()
                },
                "falls": {fall: recall(watch, "gold_falls", fall=fall) for fall in (4, 6, 8, 10)},
                "turns": {fall: recall(watch, "gold_turns", fall=fall) for fall in (4, 6, 8, 10)},
            }
        )
        print(json.dumps(curve[-1]))
    defaults = Watch()
    result = {
        "command": "python -m benchmarks.watch",
        "runs": RUNS,
        "phases_a_run": LENGTH,
        "defaults": defaults.model_dump(exclude={"action"}),
        "false_per_10000_at_defaults": per_10_000(defaults, healthy(RUNS, LENGTH)),
        "recall_at_defaults": {failure: recall(defaults, failure) for failure in FAILURES},
        "gold_curve": curve,
    }
    path = Path(__file__).parent / "results" / "watch.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
