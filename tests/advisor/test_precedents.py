"""Precedents as pure data: which are alike, what is taken from them, what they change, and what follows a verdict."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.merge_evidence import gather
from align.advisor.precedents import (
    LIKE_PARAMS,
    LIKE_ROWS,
    MOST,
    History,
    ModelScore,
    PastStage,
    likeness,
    taken,
    verdict,
    with_precedents,
)
from align.advisor.project_facts import Facts
from align.schemas.advice import Advice, PrecedentScore
from tests.advisor.deciding import advice as advised
from tests.advisor.deciding import facts, rows


def score(
    name: str = "next",
    role: Literal["domain", "eval", "safety", "watch"] = "eval",
    before: float = 0.62,
    after: float = 0.81,
    verdict: str = "improved",
    low: float | None = None,
) -> PrecedentScore:
    change = after - before
    bottom = change - 0.04 if low is None else low
    return PrecedentScore(
        name=name,
        role=role,
        verdict=verdict,
        before=before,
        after=after,
        difference=change,
        low=bottom,
        high=2 * change - bottom,
        items=400,
    )


PASSED = PastStage(
    "letters/sft",
    "runs/letters",
    "sft",
    "org/Small-7B",
    "sft_pairs",
    params_b=7.0,
    learning_rate=1e-5,
    rows=5_000,
    capability="extraction",
    outcome="pass",
    scores=(score(),),
)
FLAT = replace(PASSED, run="flat/sft", scores=(score(after=0.63, verdict="pass"),))
LOST = replace(
    PASSED,
    run="lost/sft",
    outcome="regressed",
    blocking=("general",),
    scores=(
        score(),
        PrecedentScore(
            name="general",
            role="domain",
            verdict="regressed",
            before=None,
            after=None,
            difference=-0.12,
            low=-0.16,
            high=-0.08,
            items=300,
        ),
    ),
)
WANTED: dict[str, Any] = {
    "behaviour__target_capability": "extraction",
    "data": [rows("sft_pairs", 4_000)],
    "model__params_b": 7.0,
    "evals__metric": "next",
    "evals__target": 0.9,
    "evals__baseline": 0.5,
    "tried": ["prompting"],
}


def after(history: History, known: Facts) -> Advice:
    """Advice by all rules on facts and what is taken from a history, as ``AdviceCase.advice`` puts it together."""
    found = taken(history, known)
    whole = gather([*known.evidence, *found]) if found else known
    return with_precedents(advised(whole), history, whole, advised(known) if found else None)


def own(past: PastStage, **changes: Any) -> History:
    return History((replace(past, own=True, judged=True, **changes),))


# Likeness


@given(ratio=st.floats(1.0, 100.0), above=st.booleans(), what=st.sampled_from(("rows", "params_b")))
def test_numbers_are_alike_within_their_factor(ratio: float, above: bool, what: str) -> None:
    most = LIKE_ROWS if what == "rows" else LIKE_PARAMS
    factor = ratio if above else 1 / ratio
    stage = replace(PASSED, **{what: {"rows": round(4_000 * factor), "params_b": 7.0 * factor}[what]})
    real = stage.rows / 4_000 if what == "rows" else stage.params_b / 7.0  # type: ignore[operator]
    within = max(real, 1 / real) <= most * (1 + 1e-9)
    assert (likeness(stage, facts(**WANTED), {"sft"}) is not None) == within


def test_what_is_unknown_is_no_reason_and_what_differs_excludes() -> None:
    known = facts(**WANTED)
    assert likeness(replace(PASSED, capability="sql"), known, {"sft"}) is None
    assert likeness(replace(PASSED, stage="dpo", data="preference_pairs"), known, {"sft"}) is None
    assert likeness(replace(PASSED, rows=None, params_b=None, capability=None, scores=()), known, {"sft"}) is None
    found = likeness(replace(PASSED, params_b=None, capability=None, scores=()), known, {"sft"})
    assert found is not None and found[0] == ["the same method, sft", "5,000 rows, here 4,000 rows"]
    reasons, distance = likeness(replace(PASSED, rows=4_000), known, {"sft"}) or ([], 1.0)
    assert distance == 0 and "the same capability, extraction" in reasons and "the same eval, next" in reasons
    other = likeness(PASSED, known, {"dpo"})
    assert other is not None and other[0][0] == "the same kind of data, sft_pairs"


@given(st.lists(st.integers(801, 19_999), min_size=1, max_size=8, unique=True), st.integers(0, 10**6))
def test_the_nearest_few_are_shown_in_any_order_of_reading(counts: list[int], seed: int) -> None:
    stages = [replace(PASSED, run=f"run{n}/sft", rows=n) for n in counts]
    shuffled = list(stages)
    random.Random(seed).shuffle(shuffled)
    known = facts(**WANTED)
    base = advised(known)
    one, other = (with_precedents(base, History(tuple(each)), known) for each in (stages, shuffled))
    assert one == other
    nearest = sorted(counts, key=lambda n: max(n / 4_000, 4_000 / n))[:MOST]
    assert [each.rows for each in one.precedents] == nearest


# What they change


def test_an_empty_history_is_no_change_at_all() -> None:
    known = facts(**WANTED)
    base = advised(known)
    assert taken(History(), known) == []
    assert with_precedents(base, History(), known) is base
    far = History((replace(PASSED, rows=10),))
    assert with_precedents(base, far, known) == base


@pytest.mark.parametrize(
    ("stage", "expected", "warned"),
    [
        (PASSED, "improved", False),
        (FLAT, "unchanged", True),
        (LOST, "regressed", True),
        (replace(FLAT, outcome="inconclusive"), "unchanged", True),
        (replace(PASSED, outcome="inconclusive"), "undecided", False),
        (replace(FLAT, outcome="refused"), "undecided", False),
        (replace(FLAT, outcome="invalid", scores=()), "undecided", False),
        (replace(PASSED, outcome="", scores=()), "undecided", False),
        # Another eval improved, and not the one that the brief names.
        (replace(FLAT, scores=(*FLAT.scores, score("same"))), "unchanged", True),
    ],
)
def test_a_failed_or_flat_precedent_warns_and_lowers_confidence(stage: PastStage, expected: str, warned: bool) -> None:
    known = facts(**WANTED)
    base, found = advised(known), after(History((stage,)), known)
    assert verdict(stage, known) == expected == found.precedents[0].verdict
    warnings = [each for each in found.warnings if each.id == "precedent_failed"]
    assert bool(warnings) == warned == (found.confidence != base.confidence)
    assert base.confidence == "high", "else nothing can fall"
    changed = found.precedents[0].changed
    assert changed == (["it is a warning of this advice", "the confidence falls from high to medium"] if warned else [])
    assert (found.primary, found.plan) == (base.primary, base.plan)
    assert found.provenance.input != base.provenance.input, "other bytes, another hash"
    if warned:
        assert stage.run in warnings[0].text and "5,000 rows reached 0." in warnings[0].text


def test_a_warning_about_a_method_that_is_not_planned_lowers_nothing() -> None:
    known = facts(**WANTED | {"evals__target": 0.4})  # reached by the prompt
    base, found = advised(known), after(History((LOST,)), known)
    assert base.primary == "prompting" and found.confidence == base.confidence
    assert [each.id for each in found.warnings if each.id == "precedent_failed"]


def test_support_quotes_the_figures() -> None:
    (past,) = after(History((PASSED,)), facts(**WANTED)).precedents
    assert (
        past.text
        == "5,000 rows reached 0.81 of next, from 0.62 (+0.19, +0.15 to +0.23, 400 items) here; the gate: pass"
    )


# The baseline


def test_a_baseline_is_taken_of_the_same_eval_and_model_alone() -> None:
    known = facts(
        **{key: value for key, value in WANTED.items() if key != "evals__baseline"} | {"model__name": "a/Small"}
    )
    right = ModelScore("models/small", "Next", "rewards", 0.3, 100, "evals/base")
    (found,) = taken(History(scores=(right,)), known)
    assert (found.field, found.value, found.place) == ("evals.baseline", 0.3, "history: evals/base")
    more = replace(right, score=0.4, items=500, place="evals/more")
    assert taken(History(scores=(right, more)), known)[0].value == 0.4, "the larger measurement"
    others = (replace(right, eval="other"), replace(right, model="models/large"))
    assert taken(History(scores=others), known) == []
    assert taken(History(scores=(right,)), facts(**WANTED | {"model__name": "a/Small"})) == [], "the brief states one"
    advice = after(History(scores=(right,)), known)
    (assumed,) = (each for each in advice.assumptions if each.fact == "evals.baseline = 0.3")
    assert "evals/base" in assumed.why and "100 items" in assumed.why


def test_a_baseline_that_flips_the_answer_says_which_it_was() -> None:
    known = facts(
        **{key: value for key, value in WANTED.items() if key != "evals__baseline"} | {"model__name": "a/Small"}
    )
    reached = ModelScore("models/small", "next", "rewards", 0.95, 100, "evals/base")
    advice = after(History(scores=(reached,)), known)
    assert (advised(known).primary, advice.primary) == ("post_training", "prompting")
    (assumed,) = (each for each in advice.assumptions if each.fact.startswith("evals.baseline"))
    assert assumed.effect == "without it the answer would be post_training: sft"


# After the project's own gate


def summary(past: PastStage, known: Facts | None = None, **changes: Any) -> str:
    return after(own(past, **changes), known or facts(**WANTED)).summary


def test_after_a_pass_it_ships_or_goes_on() -> None:
    reached = replace(PASSED, scores=(score(after=0.93),))
    assert summary(reached).startswith("The gate of letters/sft passed: ship runs/letters/sft/export. The rules on")
    going_on = summary(reached, open_stages=("dpo",))
    assert "go on with dpo (align train runs/letters/run.yaml --resume)" in going_on
    short = summary(PASSED)
    assert "next is at 0.81 of the 0.9 wanted; ship it if that is enough, else" in short
    both = facts(
        **WANTED | {"data": [rows("sft_pairs", 4_000), rows("preference_pairs", 9_000)], "evals__target": None}
    )
    assert "the next stage of the plan is dpo" in summary(PASSED, both)


def test_after_a_regression_the_domain_is_named_with_remedies_that_suit_the_run() -> None:
    lost = summary(LOST)
    assert lost.startswith(
        "The gate of lost/sft failed: general is down by 0.12 (0.08 to 0.16, 300 items). Mix 1-5% rows"
    )
    assert "halve optimizer.learning_rate (1e-05 to 5e-06)" in lost and "train an adapter (lora)" in lost
    assert "(lora)" not in summary(LOST, tuning="lora") and "algorithm.beta" not in lost
    assert "raise algorithm.beta" in summary(LOST, stage="grpo", data="prompts")
    assert "invalid rows failed: look at the items" in summary(LOST, blocking=("invalid rows",))
    meant = replace(LOST, scores=(score(after=0.5, verdict="regressed"), LOST.scores[1]))
    assert "Check its rows first (align data check), as next is what it was to improve" in summary(meant)


def test_after_nothing_improved_the_new_score_is_the_baseline_and_the_rules_are_called_anew() -> None:
    found = after(own(FLAT), facts(**WANTED))
    assert "taken from it: tried.fine_tuning=true, evals.baseline=0.63" in found.precedents[0].changed
    assert "the facts still call for sft, so change what it learns from" in found.summary
    prompted = facts(**WANTED | {"evals__target": 0.6})
    otherwise = after(own(FLAT), prompted)
    assert otherwise.primary == "prompting" and "the rules now advise prompting" in otherwise.summary
    assert any(
        each.startswith("without it the answer would be post_training") for each in otherwise.precedents[0].changed
    )


def test_a_trained_score_never_counts_as_the_prompt_that_reaches_the_target() -> None:
    """R-PRM-2 would advise a prompt because the trained model is at the target."""
    noise = replace(FLAT, scores=(score(before=0.88, after=0.91, verdict="pass", low=-0.01),))
    found = after(own(noise), facts(**WANTED))
    assert "evals.baseline=0.88" in found.precedents[0].changed[0]
    passed = after(own(replace(PASSED, scores=(score(after=0.95),))), facts(**WANTED))
    assert passed.primary == "post_training" and "evals.baseline" not in passed.precedents[0].changed[0]


def test_where_the_gate_cannot_tell_more_items_come_first() -> None:
    for outcome in ("refused", "inconclusive"):
        found = summary(FLAT, outcome=outcome, items_needed=1_200)
        assert f"could not tell ({outcome}): measure on about 1,200 items before anything is changed" in found
    assert summary(PASSED, outcome="", scores=()).startswith(
        "No gate has decided on letters/sft yet: measure it (align"
    )


def test_an_own_run_tells_what_the_brief_does_not() -> None:
    found = {e.field: e.value for e in taken(own(PASSED), facts(behaviour__target_capability="extraction"))}
    assert found == {
        "tried.fine_tuning": True,
        "model.name": "org/Small-7B",
        "model.params_b": 7.0,
        "data.sft_pairs": True,
        "data.sft_pairs.rows": 5_000,
    }
    stated = {e.field for e in taken(own(PASSED), facts(**WANTED))}
    assert stated == {"tried.fine_tuning"}
    corpus = {e.field for e in taken(own(PASSED, stage="continual_pretraining", data="corpus"), facts(**WANTED))}
    assert "knowledge.pretraining_done" in corpus and "tried.fine_tuning" not in corpus
