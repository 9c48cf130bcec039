"""Any text is read: no exception, every quote is the text at its span, the same text gives the same evidence."""

from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.text import HEAD, PLACES, TAIL, read

TALK = """
no not 5,000 labelled examples tokens 3B 8x80GB two A100 every week sources (a) (b) must rules: 27 , . ; - 81% need 97
don't we tried RAG pairs better of two thumbs 没有 标注 数据 六万 条 keine Beispiele 1.200 ni 10^9 $5 k half a billion
several thousand 200 300 one in eight + 60k @5 §3 #1 llama-2 1:1 " ' “ ( [ … 000 1. from 60 to 90% ** 1/2
"""
WORDS = [*TALK.split(), "\n", "\n\n", "\n- ", "\t"]


def check(text: str) -> None:
    found = read(text)
    for e in found.evidence:
        assert e.span is not None
        assert text[slice(*e.span)] == e.quote
        assert e.source == "text"
    assert read(text) == found


@settings(max_examples=150)
@given(st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    check(raw.decode("utf-8", "replace"))


@settings(max_examples=150)
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    check(text)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(WORDS), max_size=60), st.sampled_from([" ", ""]))
def test_words_that_mean_something_in_any_order(words: list[str], joint: str) -> None:
    check(joint.join(words))


def test_of_a_long_text_both_ends_are_read_and_the_rest_is_said_to_be_left_out() -> None:
    text = "We have 5,000 labelled examples. " + "Lorem ipsum dolor sit amet. " * 50_000 + "We need 27 rules."
    found = read(text)
    said = {(e.field, e.value) for e in found.evidence}
    assert {("data.sft_pairs.rows", 5000), ("behaviour.rules_count", 27)} <= said
    assert any(f"{HEAD:,}" in line and f"{TAIL:,}" in line for line in found.not_understood)
    assert all(text[slice(*e.span)] == e.quote for e in found.evidence if e.span)


def test_what_is_said_a_thousand_times_is_kept_a_few_times() -> None:
    said = [e for e in read("We have 5,000 labelled examples. " * 1000).evidence if e.field == "data.sft_pairs.rows"]
    assert len(said) == PLACES


def test_a_language_that_is_not_read_is_said_and_its_numbers_are_kept() -> None:
    found = read("Nous avons un corpus de 3B tokens et des serveurs avec 8x80GB pour nos clients, mais pas de règles.")
    assert found.languages == ["fr?"]
    assert "French" in found.not_understood[0]
    said = {(e.field, e.value) for e in found.evidence}
    assert {("data.corpus.tokens", 3_000_000_000), ("hardware.gpus", 8), ("hardware.memory_gb", 80.0)} <= said
    assert {e.field.split(".")[0] for e in found.evidence} <= {"data", "hardware", "model"}
