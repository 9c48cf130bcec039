"""Alarms: by hand, on 30 failing and 30 healthy made-up runs, and after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.online.monitor import Alarm, Watcher
from align.schemas.run import Watch
from tests.core.traces import ALARM, FAILURES, healthy, trace

ONSET, IN_TIME = 30, 40
"""Failures set in after this phase, and must be raised within as many phases more."""

Raised = list[tuple[int, Alarm]]


def watched(run: list[dict[str, float]], **chosen: Any) -> Raised:
    """Every alarm with its phase."""
    watcher = Watcher(Watch(**chosen))
    return [(i, alarm) for i, now in enumerate(run, start=1) for alarm in watcher.look(i, now)]


def phases(raised: Raised) -> list[int]:
    """When."""
    return [i for i, _ in raised]


def series(name: str, *values: float) -> list[dict[str, float]]:
    """One metric from phase to phase."""
    return [{name: value} for value in values]


def test_entropy_against_its_own_base_line() -> None:
    """Base line (2 + 3 + 1) / 3 = 2: past below 0.6, twice in a row. The sentence has the numbers and a next step."""
    run = series("entropy", 2, 3, 1, 0.7, 0.59, 0.61, 0.59, 0.5, 0.4)
    [(phase, alarm)] = watched(run)
    assert (phase, alarm.name, alarm.hint) == (8, "entropy", False)
    assert alarm.what == "entropy for 2 phases in a row below 30.0 % of its base line: it is 0.5 nats a token and was 2"
    assert "beta" in alarm.fix


def test_kl_against_its_limit() -> None:
    """Above 0.5, not at it."""
    [(phase, alarm)] = watched(series("kl", 0, 0.1, 0.2, 0.5, 0.5, 0.6, 0.75))
    assert (phase, alarm.name) == (7, "kl")
    assert "0.75" in alarm.what and "above 0.5" in alarm.what


@pytest.mark.parametrize(
    ("lengths", "when", "word"),
    [
        ([100, 110, 90, 200, 200, 201, 201], [7], "longer"),
        ([100, 110, 90, 50, 50, 49, 49], [7], "shorter"),
        ([100, 110, 90, 201, 49, 100, 100], [5], "shorter"),
    ],
)
def test_length_both_ways(lengths: list[float], when: list[int], word: str) -> None:
    """Base line 100: above 200 or below 50."""
    raised = watched(series("completions/mean_length", *lengths))
    assert phases(raised) == when and raised[0][1].name == "length"
    assert f"2 times {word}" in raised[0][1].what


def test_nothing_in_the_warm_up_and_one_alarm_an_episode() -> None:
    """Warm-up of 3; rearmed by two normal phases in a row, not by one."""
    kl = [9, 9, 9, 9, 9, 9, 9, 0.1, 9, 9, 9, 0.1, 0.1, 9, 0.1, 9, 9]
    assert phases(watched(series("kl", *kl))) == [5, 17]
    assert phases(watched(series("kl", *kl), patience=1, warmup=1)) == [2, 9, 14, 16]


def test_what_is_switched_off_missing_or_no_number_is_no_alarm() -> None:
    """A gap leaves the count as it was."""
    bad = {"entropy": 0.01, "kl": 9.0, "completions/mean_length": 900.0}
    run = [{"entropy": 1.0, "kl": 0.1, "completions/mean_length": 100.0}] * 3 + [bad] * 5
    assert sorted(alarm.name for _, alarm in watched(run)) == ["entropy", "kl", "length"]
    assert watched(run, entropy=None, kl=None, length=None) == []
    gaps = [*series("kl", 0, 0, 0, 9, math.nan, math.inf), {}, {"kl": 9.0}]
    assert phases(watched(gaps)) == [8]
    assert watched(series("entropy", 0, 0, 0, 0, 0, 0)) == []


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("frac_reward_zero_std", 0.81),
        ("completions/clipped_ratio", 0.6),
        ("sampling/lost_mass", 0.41),
        ("rewards/math/timeout", 0.06),
        ("rewards/judge/error", 0.5),
    ],
)
def test_hints(name: str, share: float) -> None:
    """Shares that waste samples are said, as hints, with the share."""
    [(phase, alarm)] = watched(series(name, *[0.0] * 4, *[share] * 4))
    assert (phase, alarm.name, alarm.hint) == (6, name, True)
    assert f"{100 * share:.1f} %" in alarm.what and alarm.fix
    assert watched(series(name, *[0.04] * 9)) == []
    assert watched(series("rewards/math/mean", *[0.9] * 9)) == []


def test_a_failure_that_is_not_named_did_not_happen() -> None:
    """Rewards' failures are logged where there are some."""
    failed: list[dict[str, float]] = [{"rewards/math/error": 0.2}]
    assert phases(watched([{}] * 3 + [*failed, {}] * 4)) == []
    assert phases(watched([{}] * 3 + failed * 3 + [{}] * 2 + failed * 2)) == [5, 10]


def pairs(*values: tuple[float, float]) -> list[dict[str, float]]:
    """Reward and gold with a standard error of 0.1 each."""
    return [{"reward": r, "reward/std_error": 0.1, "gold": g, "gold/std_error": 0.1} for r, g in values]


def test_hacking_by_hand() -> None:
    """Errors of a difference: sqrt(0.01 + 0.03 / 9) = 0.1155, so 2 of them are 0.231.

    Start (0, 0); best gold after phases 4 to 6: 1. Phase 7 (gold 0.8) is 1.7 below, phases 8 and 9 (0.7) 2.6.
    """
    run = pairs((0, 0), (0, 0), (0, 0), (0.5, 1), (0.5, 1), (0.5, 1), (0.6, 0.8), (0.6, 0.7), (0.6, 0.7))
    [(phase, alarm)] = watched(run, gold=2)
    assert (phase, alarm.name) == (9, "gold")
    assert "reward 0.6, 5.2 standard errors above its start (0)" in alarm.what
    assert "gold 0.7, 2.6 standard errors below its best (1)" in alarm.what
    assert watched(run, gold=2.7) == [] == watched(run, gold=None)
    bare = [{name: value for name, value in now.items() if "std_error" not in name} for now in run]
    assert watched(bare, gold=2) == []  # without standard errors nobody can tell


@pytest.mark.parametrize(
    "after",
    [
        [(0.6, 1.3)] * 4,  # both up: it learns
        [(0.0, -1.0)] * 4,  # the reward is where it was
        [(0.6, 0.8), (0.6, 0.7), (0.6, 0.8), (0.6, 0.7)],  # never in a row
        [(0.25, 0.0)] * 4,  # reward well above its start, but down with gold: it forgets, it does not cheat
    ],
)
def test_no_hacking(after: list[tuple[float, float]]) -> None:
    """Up and down together, or only one of them."""
    start: list[tuple[float, float]] = [(0, 0), (0, 0), (0, 0), (0.6, 1), (0.6, 1), (0.6, 1)]
    assert watched(pairs(*start, *after), gold=2) == []


def test_exact_numbers_have_no_error() -> None:
    """Without variance any difference counts, and none is no difference."""

    def exact(*values: tuple[float, float]) -> list[dict[str, float]]:
        return [{"reward": r, "reward/std_error": 0.0, "gold": g, "gold/std_error": 0.0} for r, g in values]

    assert watched(exact(*[(1.0, 1.0)] * 9)) == []
    assert phases(watched(exact(*[(0.5, 1.0)] * 4, *[(0.6, 0.9)] * 3))) == [6]


CASES = [(FAILURES[i % len(FAILURES)], i) for i in range(35)]


@pytest.mark.parametrize(("failure", "seed"), CASES)
def test_every_failure_is_raised(failure: Any, seed: int) -> None:
    """35 runs that fail after a healthy start, at the defaults: in time, and nothing before."""
    raised = watched(trace(seed, ONSET + IN_TIME, failure, ONSET))
    assert raised and min(phases(raised)) > ONSET
    assert {alarm.name for _, alarm in raised} == {ALARM.get(failure, failure)}


def test_no_healthy_run_is_alarmed() -> None:
    """30 seeds, 340 phases each, at the defaults: none in 10,200 phases, gold and hints included."""
    assert [raised for run in healthy(30, 340) for raised in watched(run)] == []


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FAILURES), st.integers(0, 2**31), st.integers(0, 70))
def test_resumed_it_says_what_it_would_have_said(failure: Any, seed: int, cut: int) -> None:
    """The state is plain values (JSON holds it) and all there is."""
    run = trace(seed, 70, failure, onset=20, groups=4)
    first, second = Watcher(Watch(gold=2)), Watcher(Watch(gold=2))
    before = [first.look(i + 1, now) for i, now in enumerate(run[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = [second.look(i + 1, now) for i, now in enumerate(run) if i >= cut]
    whole = Watcher(Watch(gold=2))
    assert before + after == [whole.look(i + 1, now) for i, now in enumerate(run)]


def test_what_the_manual_says_was_measured_at_these_defaults() -> None:
    """benchmarks/results/watch.json and docs/watching.md go with the settings' defaults and with each other."""
    root = Path(__file__).parents[3]
    result = json.loads((root / "benchmarks" / "results" / "watch.json").read_text())
    assert result["defaults"] == Watch().model_dump(exclude={"action"})
    assert result["false_per_10000_at_defaults"] == {}
    assert {found["raised"] for found in result["recall_at_defaults"].values()} == {1.0}
    tables = [line.strip("| ").split(" | ") for line in (root / "docs" / "watching.md").read_text().splitlines()]
    for row in result["gold_curve"]:
        rates = [
            str(row["gold"]),
            *(f"{rate:.3g}" if rate < 10 else f"{rate:.0f}" for rate in row["false_per_10000"].values()),
        ]
        assert rates in tables
