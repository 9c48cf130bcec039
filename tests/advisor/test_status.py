"""Scopes of negations, attributions and other triggers, on sentences written by hand."""

import pytest

from align.advisor.text.assertion_status import Scopes
from align.advisor.text.lexicon import lexicon
from align.advisor.text.sentences import split_words

SAID = [
    ("We have no labels.", "labels", "negated"),
    ("We do not need fresh data.", "fresh", "negated"),
    ("Sources needn't be cited.", "cited", "negated"),
    ("Labels: none.", "Labels", "negated"),
    ("There are no labels, preferences or scores.", "scores", "negated"),
    ("No budget, three GPUs.", "GPUs", "asserted"),
    ("We have no GPUs but a checker exists.", "checker", "asserted"),
    ("Not only labels but scores exist.", "labels", "asserted"),
    ("Without wrecking the model.", "model", "asserted"),
    ("We tried retrieval last year.", "retrieval", "tried"),
    ("Retrieval was tried last year.", "Retrieval", "tried"),
    ("Tried: the schema in the prompt; also retrieval.", "retrieval", "tried"),
    ("A consultant recommended DPO.", "DPO", "attributed"),
    ("My boss says DPO is what we need.", "DPO", "attributed"),
    ("I read about DPO on a train.", "DPO", "attributed"),
    ("Pre-training is behind us.", "Pre", "done"),
    ("We plan to label examples in May.", "examples", "planned"),
    ("We have examples.", "examples", "asserted"),
    ("Ratings will be collected.", "Ratings", "planned"),
    ("Retrieval is out; labels exist.", "labels", "asserted"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "word", "status"), SAID)
def test_status(text: str, word: str, status: str) -> None:
    sentence = split_words(text)
    at = sentence.words.index(word.lower())
    assert Scopes(sentence, lexicon("en").find(sentence)).of(at, at + 1) == status
