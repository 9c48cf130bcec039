"""Perplexity of documents of our own: known likelihoods, windows over long documents, lm-eval's figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.core.inference.eval_models import ModelChoice, open_model
from align.plugins.evals.perplexity import Perplexity
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import write_jsonl

TEXTS = ["one two three", "äöü and more", "a b c d e f g h " * 20]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"data": write_jsonl(tmp_path / "held_out.jsonl", [{"text": text} for text in TEXTS])}


def uniform(bits: float) -> ScriptedModel:
    """A model that spends so many bits on each byte."""
    return ScriptedModel(logp=lambda _context, text: -bits * math.log(2) * len(text.encode()))


def test_bits_per_byte_of_models_that_spend_the_same_on_each_byte(settings: dict[str, Any]) -> None:
    rows, metrics = run_eval("perplexity", settings, uniform(2))
    assert {round(row.score, 9) for row in rows} == {2.0}
    assert metrics["score"] == pytest.approx(2) and metrics["bits_per_byte"] == pytest.approx(2)
    assert metrics["byte_perplexity"] == pytest.approx(4)
    size, words = sum(len(text.encode()) for text in TEXTS), 3 + 3 + 161
    assert metrics["word_perplexity"] == pytest.approx(4 ** (size / words))
    assert len({row.prompt_sha for row in rows}) == 3 and all(row.prompts[0]["context"] == "" for row in rows)


def test_the_score_weighs_documents_equally_and_the_perplexities_by_length(settings: dict[str, Any]) -> None:
    model = ScriptedModel(logp=lambda _, text: -(1 if len(text) > 50 else 3) * math.log(2) * len(text.encode()))
    _, metrics = run_eval("perplexity", settings, model)
    assert metrics["score"] == pytest.approx(7 / 3) and metrics["bits_per_byte"] < 1.3
    assert not Perplexity.higher_is_better


def test_a_model_worse_than_none_is_capped_and_a_damaged_one_stops_the_run(settings: dict[str, Any]) -> None:
    _, metrics = run_eval("perplexity", settings, uniform(1e4))
    assert metrics["score"] == 8 and metrics["bits_per_byte"] == pytest.approx(1e4)
    assert math.isfinite(metrics["word_perplexity"])
    for damaged in (math.nan, -math.inf):
        with pytest.raises(AlignError, match="log-probability is"):
            run_eval("perplexity", settings, ScriptedModel(logp=lambda *_, value=damaged: value))


def test_text_files_columns_and_clusters(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("first\n\nsecond\n\nthird\n")
    rows, _ = run_eval("perplexity", {"data": str(file), "documents": "blank_lines"}, uniform(1))
    assert sorted(row.prompts[0]["continuation"] for row in rows) == ["first", "second", "third"]
    pages = [{"id": n, "page": f"text {n}", "site": f"s{n % 2}"} for n in range(4)]
    settings = {"data": write_jsonl(tmp_path / "pages.jsonl", pages), "column": "page", "clusters": "site"}
    rows, _ = run_eval("perplexity", settings, uniform(1))
    assert {row.item_id: row.cluster_id for row in rows} == {"0": "s0", "1": "s1", "2": "s0", "3": "s1"}
    for change, message in (({"column": "text"}, "has no text in 'text'"), ({"clusters": "book"}, "has no 'book'")):
        with pytest.raises(AlignError, match=message):
            run_eval("perplexity", settings | change, uniform(1))


def test_figures_are_those_of_lm_eval_over_documents_longer_than_the_context(
    settings: dict[str, Any], tiny_model_dir: Path
) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert lm_eval
    with open_model(ModelChoice(str(tiny_model_dir), context=24)) as model:
        rows, metrics = run_eval("perplexity", settings, model)
    # One place of our windows is for the token before the first that is scored; lm-eval adds it.
    theirs = HFLM(pretrained=str(tiny_model_dir), device="cpu", dtype="float32", max_length=23, add_bos_token=False)
    asked = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(TEXTS)]
    expected = dict(zip(TEXTS, theirs.loglikelihood_rolling(asked, disable_tqdm=True), strict=True))
    for row in rows:
        text = row.prompts[0]["continuation"]
        assert row.outputs[0] == pytest.approx(expected[text], rel=1e-5)
        assert row.metrics["tokens"] == len(theirs.tok_encode(text))
    assert max(row.metrics["tokens"] for row in rows) > 3 * 24
    total, size = sum(expected.values()), sum(len(text.encode()) for text in TEXTS)
    assert metrics["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-5)
