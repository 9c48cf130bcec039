"""The learned reader: features, linear heads, candidates, and the arbitration between readers."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.assemble import advise
from align.advisor.decision import Conclusion, Decision, conclude
from align.advisor.merge_evidence import gather, without_guesses
from align.advisor.project_facts import Evidence, Plan, Reading
from align.advisor.reading import WordsRead, _question, candidates, features, read_words
from align.advisor.reading.answers import ANSWERS, STAGES, WARNINGS, Outlook
from align.advisor.reading.arbitration import OF_ANSWER, arbitrate, evidence_of
from align.advisor.reading.candidates import Candidate, FoundNumber, as_evidence
from align.advisor.reading.linear import LinearHeads, load, row, save, weights
from align.advisor.reading.statements import Statement, parse
from align.advisor.select import Selection
from align.advisor.text.number import exact
from align.advisor.understood import understood
from align.schemas.advice import PlanStep
from tests.advisor.deciding import LIMIT, rules


def read(text: str, model: list[Evidence] | None = None) -> WordsRead:
    return read_words(text, lambda evidence: conclude(gather(evidence), LIMIT, rules()), model)


# Features


def grams(text: str) -> set[tuple[str, ...]]:
    """The n-grams of a normalised text, written out: an oracle for their number."""
    letters = {("c", text[at : at + n]) for n in (2, 3, 4, 5) for at in range(len(text) - n + 1)}
    words = text.split()
    return letters | {("w", *words[at : at + n]) for n in (1, 2, 3) for at in range(len(words) - n + 1)}


@given(st.text("abc ", min_size=1, max_size=40))
def test_each_different_ngram_is_one_feature_and_equal_ones_share_it(text: str) -> None:
    plain = features.normalised(text)
    assert len(set(features.of_text(text).tolist())) == len(grams(plain))


def test_digits_count_by_their_number_and_case_and_space_do_not_count() -> None:
    assert features.of_text("We have 5,200 Rows").tolist() == features.of_text("we  have\n9,871 rows ").tolist()
    assert features.of_text("520 rows").tolist() != features.of_text("5200 rows").tolist()


def test_a_sentence_knows_its_neighbours_and_tells_them_from_its_own_words() -> None:
    alone, before = features.of_sentences(["none of it"]), features.of_sentences(["we have pairs", "none of it"])
    own = set(alone[0].tolist())
    assert own < set(before[1].tolist())
    assert not (set(before[1].tolist()) - own) & set(features.of_text("we have pairs").tolist())


# Linear heads


def heads(weight: Any, bias: Any, names: tuple[str, ...] = ("a", "b")) -> LinearHeads:
    idf = np.ones(len(weight), np.float32)
    return LinearHeads(
        names, idf, np.array(weight, np.int8), np.array([0.5, 2.0], np.float32), np.array(bias, np.float32)
    )


def test_scores_are_the_sum_of_weights_over_a_row_of_length_1() -> None:
    # Two buckets, told apart by the first bit: three features in the first, one in the second.
    texts = [np.array([1, 2, 3, 1 << 31], np.uint32)]
    first, second = 1 + np.log(3), 1.0
    length = np.hypot(first, second)
    expected = [0.1 + 0.5 * (4 * first - 2 * second) / length, -0.2 + 2.0 * (1 * first + 3 * second) / length]
    found = heads([[4, 1], [-2, 3]], [0.1, -0.2]).scores(texts)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_feature_of_no_text_or_one_counts_nothing() -> None:
    buckets, values = row(np.array([1, 1 << 31], np.uint32), np.array([0.0, 2.0], np.float32))
    assert buckets.tolist() == [1] and values.tolist() == [1.0]
    assert row(np.array([], np.uint32), np.ones(2, np.float32))[0].size == 0


def test_weights_are_read_back_as_written_and_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    kinds = {kind: heads([[1, -1], [0, 31]], [0.5, 0.25]) for kind in ("text", "sentence", "number")}
    about = {"votes": ["R-RAG-1"]}
    for name in ("one.npz", "other.npz"):
        save(tmp_path / name, kinds, {"rare": np.array([0.5], np.float32)}, about)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    back = load(tmp_path / "one.npz")
    assert back.sentence.names == ("a", "b") and back.sentence.weights.tolist() == [[1, -1], [0, 31]]
    assert back.combined["rare"].tolist() == [0.5] and back.about["votes"] == ["R-RAG-1"]


def test_the_shipped_weights_are_small() -> None:
    shipped = Path(load.__code__.co_filename).with_name("weights.npz")
    assert shipped.stat().st_size <= 3_000_000
    assert weights().hash.startswith("sha256:")


# Statements and candidates


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        (Evidence("data.sft_pairs", True, "negated"), "data.sft_pairs=false|asserted"),
        (Evidence("data.sft_pairs", True, "planned"), "data.sft_pairs=true|planned"),
        (Evidence("reward.kind", "verifier", "negated"), "reward.kind=none|asserted"),
        (Evidence("behaviour.rules_count", 27), "behaviour.rules_count|asserted"),
        (Evidence("requested", "sft", "attributed"), "requested=sft|attributed"),
    ],
)
def test_a_statement_is_named_without_its_words_and_its_number(evidence: Evidence, name: str) -> None:
    assert Statement.of(evidence).name == name
    assert parse(name).name == name


@pytest.mark.parametrize(
    ("field", "value", "share", "expected"),
    [
        ("evals.baseline", 62.0, False, 0.62),
        ("evals.baseline", 0.62, True, 0.62),
        ("evals.baseline", 620.0, False, None),
        ("behaviour.rules_count", 0.62, True, None),
        ("behaviour.rules_count", 27.0, False, 27),
        ("behaviour.rules_count", 22750.0, False, None),
    ],
)
def test_a_number_is_taken_for_what_a_field_can_have(field: str, value: float, share: bool, expected: Any) -> None:
    number = replace(exact(value, 0, 1), share=share)
    found = as_evidence(parse(f"{field}|asserted"), FoundNumber(number, (0, 2), "62"))
    assert (None if found is None else found.value) == expected


def test_a_language_model_makes_its_facts_likelier_and_the_others_less() -> None:
    stated = Candidate(parse("knowledge.per_user=true|asserted"), 0.0, ())
    silent = Candidate(parse("knowledge.needs_citations=true|asserted"), 0.0, ())
    model = [
        Evidence("knowledge.per_user", True, quote="own orders", source="model"),
        Evidence("data.sft_pairs", True, quote="300 pairs", source="model"),
        Evidence("data.sft_pairs.rows", 300, quote="300 pairs", source="model"),
    ]
    first, second, third = candidates.with_model([stated, silent], model)
    assert (first.log_odds, second.log_odds) == (candidates.MODEL_STATES, candidates.MODEL_SILENT)
    assert [e.field for e in third.evidence] == ["data.sft_pairs", "data.sft_pairs.rows"]


# Arbitration


def outlook(**answers: float) -> Outlook:
    """Probabilities of answers; stages and warnings tell nothing."""
    rest = (1 - sum(answers.values())) / (len(ANSWERS) - len(answers))
    logs = {answer: float(np.log(answers.get(answer, rest))) for answer in ANSWERS}
    return Outlook(logs, dict.fromkeys(STAGES, (0.0, 0.0)), dict.fromkeys(WARNINGS, -99.0))


def candidate(field: str, log_odds: float) -> Candidate:
    return Candidate(parse(f"{field}=true|asserted"), log_odds, (Evidence(field, True, quote=field),))


def concluded(primary: Any) -> Conclusion:
    return Conclusion(Decision(Selection(primary, (), "hard"), Plan(primary), ()), frozenset())


def by_fields(evidence: Any) -> Conclusion:
    """``rag`` where a source must be shown, else ``post_training`` where a style is wanted, else ``insufficient``."""
    held = {e.field for e in evidence}
    if "knowledge.needs_citations" in held:
        return concluded("rag")
    return concluded("post_training" if "behaviour.style_or_persona" in held else "insufficient")


OPTIONS = [candidate("knowledge.needs_citations", -1.0), candidate("behaviour.style_or_persona", 2.0)]


def test_a_doubtful_fact_is_taken_where_the_whole_text_calls_for_what_follows_from_it() -> None:
    # rag needs the doubtful fact: -1 + 2 + A ln 0.8 against 2 + A ln 0.05.
    found = arbitrate(OPTIONS, [], by_fields, outlook(rag=0.8, post_training=0.05))
    assert found.taken.primary == "rag" and found.taken.facts == frozenset({0, 1})
    assert found.taken.score == pytest.approx(1.0 + OF_ANSWER * np.log(0.8))
    assert found.others[0].primary == "post_training"
    # With the text undecided the doubtful fact is not worth its cost.
    found = arbitrate(OPTIONS, [], by_fields, outlook(rag=0.1, post_training=0.2))
    assert found.taken.primary == "post_training" and found.taken.facts == frozenset({1})


def test_fixed_evidence_is_in_every_reading() -> None:
    fixed = [Evidence("knowledge.needs_citations", True, source="form")]
    found = arbitrate(OPTIONS, fixed, by_fields, outlook(post_training=0.9))
    assert found.taken.primary == "rag" and {reading.primary for reading in found.others} == set()


def test_of_two_answers_that_are_nearly_as_likely_the_cheaper_is_taken() -> None:
    options = [candidate("behaviour.style_or_persona", 2.0), candidate("knowledge.needs_citations", -0.1)]
    found = arbitrate(options, [], by_fields, outlook(post_training=0.45, rag=0.44))
    assert found.taken.primary == "rag" and found.others[0].primary == "post_training"
    found = arbitrate(options, [], by_fields, outlook(post_training=0.5, rag=0.3))
    assert found.taken.primary == "post_training"


def test_an_unlikely_stage_is_paid_for() -> None:
    def sampling(evidence: Any) -> Conclusion:
        scored = any(e.field == "reward.kind" for e in evidence)
        steps = (PlanStep(stage="grpo" if scored else "sft", why=[]),)
        return Conclusion(
            Decision(Selection("post_training", (), "hard"), Plan("post_training", steps), ()), frozenset()
        )

    options = [Candidate(parse("reward.kind=verifier|asserted"), 1.0, (Evidence("reward.kind", "verifier"),))]
    unlikely = replace(outlook(), stages=dict.fromkeys(STAGES, (0.0, 0.0)) | {"online_rl": (-0.01, -4.0)})
    assert arbitrate(options, [], sampling, unlikely).taken.facts == frozenset()
    assert arbitrate(options, [], sampling, outlook()).taken.facts == frozenset({0})


def test_a_stage_that_the_text_makes_improbable_is_doubtful() -> None:
    """And advice with it is never called sure, however sure its answer is."""
    likely = dict.fromkeys(STAGES, (-0.7, -0.69)) | {"online_rl": (-0.5, -0.9), "sft": (-0.6, -0.8)}
    known = replace(outlook(), stages=likely, warnings=dict.fromkeys(WARNINGS, 0.1))
    steps = [PlanStep(stage="grpo", why=[]), PlanStep(stage="dpo", why=[]), PlanStep(stage="rag", why=[])]
    assert known.doubtful([*steps, PlanStep(stage="sft", why=[], optional=True)]) == {"grpo"}
    known = replace(known, warnings=dict.fromkeys(WARNINGS, -0.1))
    assert known.doubtful(steps) == {"grpo", "rag"}

    facts = gather(
        [Evidence("knowledge.needs_citations", True, quote="the page", source="text")],
        reading=Reading("rag", {"rag": 0.95}),
    )
    assert advise(facts, LIMIT, rules()).confidence == "high"
    doubted = replace(facts, reading=Reading("rag", {"rag": 0.95}, doubtful=frozenset({"rag"})))
    assert advise(doubted, LIMIT, rules()).confidence == "medium"
    unsure = replace(facts, reading=Reading("rag", {"rag": 0.6}))
    assert advise(unsure, LIMIT, rules()).confidence == "low"
    guess = Evidence("knowledge.needs_citations", True, quote="the page", source="text", probability=0.2)
    assert advise(replace(facts, evidence=(guess,)), LIMIT, rules()).confidence == "medium"
    told = replace(facts, evidence=(Evidence("knowledge.needs_citations", True, source="form"),))
    assert advise(told, LIMIT, rules()).probability is None


@settings(max_examples=60)
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=5),
    st.lists(st.sampled_from(ANSWERS), min_size=32, max_size=32),
    st.lists(st.floats(-5, 0), min_size=len(ANSWERS), max_size=len(ANSWERS)),
)
def test_no_single_change_makes_the_reading_better(odds: list[float], answers: list[Any], logs: list[float]) -> None:
    fields = ["behaviour.style_or_persona", "knowledge.per_user", "knowledge.needs_citations",
              "knowledge.unseen_domain", "behaviour.prompt_falls_short"]  # fmt: skip
    options = [candidate(field, value) for field, value in zip(fields, odds, strict=False)]
    known = replace(outlook(), answers=dict(zip(ANSWERS, logs, strict=True)))

    def any_rules(evidence: Any) -> Conclusion:
        return concluded(answers[sum(1 << fields.index(e.field) for e in evidence)])

    def score(facts: frozenset[int]) -> float:
        primary = any_rules(evidence_of(facts, options)).primary
        return sum(options[at].log_odds for at in sorted(facts)) + OF_ANSWER * known.answers[primary]

    found = arbitrate(options, [], any_rules, known)
    if found.taken.score < max(reading.score for reading in (found.taken, *found.others)):
        return  # the cheaper of two
    assert found.taken.score == pytest.approx(score(found.taken.facts))
    for at in range(len(options)):
        assert score(found.taken.facts ^ {at}) <= found.taken.score + 1e-9
    everything = [
        frozenset(chosen) for n in range(len(options) + 1) for chosen in itertools.combinations(range(len(options)), n)
    ]
    assert found.taken.score <= max(map(score, everything)) + 1e-9


# Whole texts

TEXT = (
    "Hospital pharmacy. Doses in our handbook are revised every Tuesday, and the clerk must see the page an answer "
    "came from. A consultant wants us to fine-tune a 7B on the old handbook."
)


def test_facts_are_quoted_and_lead_to_the_answer() -> None:
    found = read(TEXT)
    assert found.reading is not None and found.reading.primary == "rag"
    assert conclude(gather(found.evidence), LIMIT, rules()).primary == "rag"
    for e in found.evidence:
        assert e.span is not None and TEXT[slice(*e.span)] == e.quote, e
    weekly = next(e for e in found.evidence if e.field == "knowledge.changes")
    assert weekly.value == "weekly" and "every Tuesday" in weekly.quote
    assert sum(found.reading.probability.values()) == pytest.approx(1.0, abs=1e-4)


def test_the_same_text_gives_the_same_reading() -> None:
    assert read(TEXT) == read(TEXT)


def test_the_lexicon_alone_reads_machines_and_sizes_that_it_knows() -> None:
    found = read("We have 60 examples of rewritten letters, no GPU, and want the tone of our house. Prompts miss it.")
    read_as = {e.field: e.value for e in found.evidence}
    assert read_as["hardware.gpus"] == 0
    assert read_as["data.sft_pairs.rows"] == 60


def test_a_guess_at_words_gives_way_to_files_and_forms() -> None:
    guess = Evidence("knowledge.needs_citations", True, quote="the page", source="text", probability=0.3)
    sure = replace(guess, field="knowledge.per_user", probability=0.6)
    counted = Evidence("data.sft_pairs.rows", 600, source="file")
    assert without_guesses([guess, sure]) == (guess, sure)
    assert without_guesses([guess, sure, counted]) == (sure, counted)
    machine = Evidence("hardware.gpus", 2, source="form")
    assert without_guesses([guess, machine]) == (guess, machine), "it tells nothing of what is wanted"


def test_the_question_between_two_readings_is_a_sentence() -> None:
    rated = [
        Evidence("data.unpaired_feedback", True, quote="some rated", source="text"),
        Evidence("data.unpaired_feedback.rows", 300, quote="300 chats", source="text"),
    ]
    facts = understood(gather(rated))
    assert _question(facts, facts, True) == "Is it so that there are 300 answers marked good or bad?"
    assert _question(facts[1:], facts, False) == "Is it really so that there are 300 answers marked good or bad?"
    assert _question([], [], True) == "What should be different afterwards, above all?"


def test_a_model_is_a_third_voice() -> None:
    alone = read(TEXT).reading
    agrees = [Evidence("knowledge.needs_citations", True, quote="must see the page", span=(64, 81), source="model")]
    heard = read(TEXT, agrees).reading
    assert alone is not None and heard is not None
    assert heard.probability["rag"] > alone.probability["rag"]


@pytest.mark.parametrize(
    "text",
    ["", "   ", "27 14000 95% 60% 8 80 3e9 70B", "Nous voulons adapter un modèle avec des exemples de nos lettres."],
)
def test_words_in_no_known_language_are_not_weighed(text: str) -> None:
    assert read(text).reading is None


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=400))
def test_no_text_stops_the_reader_and_every_quote_stands_in_it(text: str) -> None:
    for e in read(text).evidence:
        assert e.span is None or text[slice(*e.span)] == e.quote


def test_a_long_text_is_read_in_bounded_pieces() -> None:
    found = read("We answer from 1,200 pages. " * 20_000)
    assert found.reading is not None and found.passed_over


def test_words_are_hashed_as_their_utf_8_bytes() -> None:
    # An independent computation of one word feature: crc32, the kind's mark, and MurmurHash3's finalizer.
    def finalized(h: int) -> int:
        h ^= h >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h ^= h >> 13
        h = h * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ (h >> 16)

    expected = finalized(zlib.crc32("äpfel".encode()) ^ (21 * 0x9E3779B1 & 0xFFFFFFFF))
    assert expected in set(features.of_text("Äpfel").tolist())
