from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.measured_evidence import add_measurements, apart, rows_to_settle
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Facts, from_form
from align.advisor.rule import Ask, Vote, Warn
from align.core.evaluation.statistics import Z95, wilson
from align.plugins.rules import measured as rules
from align.plugins.rules.knowledge import own_pages
from align.schemas.project import Measured, Measurement
from tests.advisor.deciding import LIMIT, advice, fired, form, rows, warned


def m(value: float, half: float = 0.02, n: int = 200) -> Measurement:
    return Measurement(value=value, low=value - half, high=value + half, rows=n)


def facts(found: dict[str, Any], **settings: Any) -> Facts:
    return gather(add_measurements(from_form(form(**settings)), Measured(**found), LIMIT))


def test_measurements_are_kept_as_they_are_and_quoted() -> None:
    known = facts({"zero_shot": m(0.5), "score": "math"})
    assert known.project.measured == Measured(zero_shot=m(0.5), score="math")
    said = known.why("measured.zero_shot")
    assert said is not None and said.source == "measured"
    assert said.quote == "zero shot: 0.5 (0.48 to 0.52, 200 rows)"
    assert not known.conflicts and not known.rejected


@pytest.mark.parametrize(
    ("best", "falls_short", "baseline"),
    [(0.95, False, 0.95), (0.80, True, 0.80), (0.91, None, None)],
    ids=["reached", "missed", "overlapping"],
)
def test_a_target_is_reached_missed_or_left_open(best: float, falls_short: bool | None, baseline: float | None) -> None:
    known = facts({"zero_shot": m(0.5), "few_shot": m(best), "score": "math"}, evals__target=0.9)
    assert known.project.behaviour.prompt_falls_short is falls_short
    assert known.project.evals.baseline == baseline
    assert set(known.project.tried or ()) == {"prompting", "few_shot"}


def test_what_was_measured_beats_what_was_claimed_and_says_so() -> None:
    known = facts({"zero_shot": m(0.6), "score": "math"}, evals__baseline=0.9, evals__target=0.85)
    assert known.project.evals.baseline == 0.6
    assert [(c.field, c.taken.value, c.dropped.value) for c in known.conflicts] == [("evals.baseline", 0.6, 0.9)]


@pytest.mark.parametrize(("metric", "counts"), [(None, False), ("exact match", False), ("token F1", True)])
def test_word_f1_is_held_against_no_other_metrics_target(metric: str | None, counts: bool) -> None:
    known = facts({"zero_shot": m(0.95), "score": "word F1"}, evals__target=0.9, evals__metric=metric)
    assert (known.project.evals.baseline == 0.95) is counts
    assert bool(list(rules.prompt_reaches_target(known, LIMIT))) is counts


@pytest.mark.parametrize(("corpus", "unseen"), [(1.5, True), (1.1, False), (1.3, None)])
def test_a_domain_is_unseen_where_its_bits_say_so(corpus: float, unseen: bool | None) -> None:
    known = facts({"corpus_bits": m(corpus), "reference_bits": m(1.0)})  # far: 1.3 times 0.98 to 1.02
    assert known.project.knowledge.unseen_domain is unseen
    asked = list(rules.domain_is_unseen(known, LIMIT))
    assert len(asked) == (unseen is None)


def only(outcome: Any) -> Any:
    (found,) = outcome
    return found


def test_prompting_that_reaches_the_target_is_found_with_both_numbers() -> None:
    known = facts({"zero_shot": m(0.95), "score": "math"}, evals__target=0.9)
    found = only(rules.prompt_reaches_target(known, LIMIT))
    assert isinstance(found, Vote) and (found.option, found.weight) == ("prompting", "hard")
    assert "0.95 (0.93 to 0.97, 200 rows)" in found.because and "0.9" in found.because
    asked = only(rules.prompt_reaches_target(facts({"zero_shot": m(0.91), "score": "x"}, evals__target=0.9), LIMIT))
    assert isinstance(asked, Ask) and "rows would show it" in asked.question
    equal = only(rules.prompt_reaches_target(facts({"zero_shot": m(0.9), "score": "x"}, evals__target=0.9), LIMIT))
    assert "no number of rows would" in equal.question


def test_an_open_book_speaks_for_retrieval_only_beyond_the_intervals() -> None:
    found = only(rules.open_book_helps(facts({"closed_book": m(0.2), "open_book": m(0.6)}), LIMIT))
    assert isinstance(found, Vote) and (found.option, found.rubric) == ("rag", "RAG")
    asked = only(rules.open_book_helps(facts({"closed_book": m(0.20), "open_book": m(0.23)}), LIMIT))
    assert isinstance(asked, Ask)
    warning = only(rules.open_book_helps(facts({"closed_book": m(0.6), "open_book": m(0.2)}), LIMIT))
    assert isinstance(warning, Warn) and warning.id == "retrieval_lowers"


@pytest.mark.parametrize(
    ("first", "best", "flat", "said"),
    [
        (0.00, 0.02, 0.98, "hardly any prompt"),
        (0.98, 0.99, 0.60, "nearly every answer"),
        (0.10, 0.15, 0.90, "score alike"),
    ],
)
def test_where_rewards_can_teach_nothing_it_is_said(first: float, best: float, flat: float, said: str) -> None:
    known = facts({"pass_1": m(first), "pass_k": m(best), "flat_groups": m(flat)})
    warning = only(rules.head_room(known, LIMIT))
    assert isinstance(warning, Warn) and warning.id == "no_headroom"
    assert said in warning.text


def test_head_room_speaks_for_training_only_beyond_the_intervals() -> None:
    found = only(rules.head_room(facts({"pass_1": m(0.3), "pass_k": m(0.7), "flat_groups": m(0.4)}), LIMIT))
    assert isinstance(found, Vote) and (found.option, found.weight) == ("post_training", "soft")
    asked = only(rules.head_room(facts({"pass_1": m(0.3), "pass_k": m(0.33), "flat_groups": m(0.4)}), LIMIT))
    assert isinstance(asked, Ask)


def test_pairs_that_are_ranked_already_teach_little() -> None:
    assert only(rules.already_preferred(facts({"prefers_chosen": m(0.98)}), LIMIT)).id == "little_to_learn"
    assert list(rules.already_preferred(facts({"prefers_chosen": m(0.7)}), LIMIT)) == []


def test_without_measurements_no_rule_says_anything() -> None:
    every = (rules.prompt_reaches_target, rules.open_book_helps, rules.domain_is_unseen, rules.head_room)
    for rule in (*every, rules.already_preferred):
        assert list(rule(facts({}, evals__target=0.9), LIMIT)) == []


def test_measurements_turn_advice() -> None:
    """The same wish: pairs and a skill speak for training, until the prompt is measured to do."""
    wish = {
        "behaviour__target_capability": "sql",
        "data": [rows("sft_pairs", 5000)],
        "evals__target": 0.9,
        "evals__metric": "execution accuracy",
    }
    assert advice(facts({}, **wish)).primary == "post_training"
    done = advice(facts({"zero_shot": m(0.95), "score": "execution"}, **wish))
    assert done.primary == "prompting"
    assert {"R-MEA-1", "R-PRM-2"} <= fired(done)
    quotes = [q for r in done.reasons for q in r.quotes if q.source == "measured"]
    assert any("0.95 (0.93 to 0.97, 200 rows)" in q.quote for q in quotes)
    looked_up = advice(facts({"closed_book": m(0.2), "open_book": m(0.8)}, data=[rows("documents")]))
    assert looked_up.primary == "rag" and "R-MEA-2" in fired(looked_up)
    unsolved = {"pass_1": m(0.0), "pass_k": m(0.01), "flat_groups": m(0.99)}
    hard = advice(facts(unsolved, data=[rows("prompts", 5000)], reward__kind="verifier"))
    assert "no_headroom" in warned(hard)
    open_ = advice(facts({"zero_shot": m(0.91), "score": "x"}, **wish))
    assert "measure_prompt" in {q.id for q in open_.missing}


def test_pages_that_were_measured_to_help_no_answer_speak_softly() -> None:
    wish = {"data": [rows("documents")], "task__type": "qa", "knowledge__source": "proprietary"}
    unmeasured = own_pages(facts({}, **wish), LIMIT)
    lowered = own_pages(facts({"closed_book": m(0.6), "open_book": m(0.2)}, **wish), LIMIT)
    untold = own_pages(facts({"closed_book": m(0.6), "open_book": m(0.59)}, **wish), LIMIT)
    assert unmeasured and lowered and untold
    assert (unmeasured.weight, lowered.weight, untold.weight) == ("hard", "soft", "hard")


measurements = st.none() | st.builds(
    lambda value, half, n: m(value / 100, half / 100, n), st.integers(0, 100), st.integers(0, 50), st.integers(1, 500)
)
PROBES = [name for name in Measured.model_fields if name != "score"]


@settings(max_examples=40)
@given(st.fixed_dictionaries(dict.fromkeys(PROBES, measurements)), st.sampled_from([None, "word F1", "math"]))
def test_whatever_was_measured_every_rule_that_fires_quotes_it(found: dict[str, Any], score: str | None) -> None:
    known = facts({**found, "score": score}, evals__target=0.5)
    advised = advice(known)
    assert not any("failed" in told for told in advised.not_understood)
    for reason in advised.reasons:
        if reason.rule.startswith("R-MEA"):
            assert any(quote.source == "measured" for quote in reason.quotes)
    closed, opened = found["closed_book"], found["open_book"]
    if closed and opened and not apart(closed, opened):
        assert "R-MEA-2" not in fired(advised) and "measure_retrieval" in {q.id for q in advised.missing}


def test_apart_by_hand() -> None:
    assert apart(m(0.5), m(0.4)) == 1
    assert apart(m(0.4), m(0.5)) == -1
    assert apart(m(0.5), m(0.46)) == 0  # they touch
    assert (apart(m(0.5), 0.47), apart(m(0.5), 0.53), apart(m(0.5), 0.52)) == (1, -1, 0)


def share(p: float, n: int) -> Measurement:
    """Wilson's interval; ``p * n`` need not be whole, as it need not for the formula."""
    shrink = 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Measurement(value=p, low=centre - half, high=centre + half, rows=n)


def test_share_is_wilsons() -> None:
    assert (share(0.3, 50).low, share(0.3, 50).high) == pytest.approx(wilson(15, 50))


shares, numbers = st.integers(0, 100).map(lambda i: i / 100), st.integers(2, 500)


@given(shares, shares, numbers)
def test_so_many_rows_part_two_shares(p: float, q: float, n: int) -> None:
    a, b = share(p, n), share(q, n)
    wanted = rows_to_settle(a, b)
    if p == q:
        assert wanted is None
    elif not apart(a, b):
        assert wanted is not None and wanted > n
        assert apart(share(p, wanted), share(q, wanted)) == (1 if p > q else -1)


@given(shares, shares, numbers)
def test_so_many_rows_part_a_share_from_a_target(p: float, target: float, n: int) -> None:
    wanted = rows_to_settle(share(p, n), target)
    if p == target:
        assert wanted is None
    elif not apart(share(p, n), target):
        assert wanted is not None
        assert apart(share(p, wanted), target) == (1 if p > target else -1)


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0.01, 3), st.floats(0.01, 3), numbers, numbers)
def test_so_many_rows_part_two_means(a: float, b: float, s: float, t: float, n: int, k: int) -> None:
    def mean(value: float, spread: float, rows: int) -> Measurement:
        return m(value, Z95 * spread / math.sqrt(rows), rows)

    if abs(a - b) > 1e-3 and not apart(mean(a, s, n), mean(b, t, k)):
        wanted = rows_to_settle(mean(a, s, n), mean(b, t, k))
        assert wanted is not None
        assert apart(mean(a, s, wanted), mean(b, t, wanted)) == (1 if a > b else -1)


def test_rows_to_settle_is_not_far_more_than_needed() -> None:
    wanted = rows_to_settle(share(0.80, 100), share(0.85, 100))
    assert wanted is not None
    least = next(n for n in range(100, 10**5) if apart(share(0.80, n), share(0.85, n)))
    assert least <= wanted <= 1.25 * least
