"""The training of the learned reader: its machines against an independent oracle, its labels, and its bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.advisor.reading.linear import weights
from benchmarks.advice_cases import Case, Read, load
from tools import train_reader

ROOT = Path(__file__).parents[2]


def problem(texts: int, buckets: int) -> tuple[list[Any], Any, Any]:
    """Sparse rows of length 1, dense ones of the same, and labels that the first buckets decide, with noise."""
    random = np.random.default_rng(1)
    dense = np.where(random.random((texts, buckets)) < 0.2, random.random((texts, buckets)), 0).astype(np.float32)
    dense[:, 0] += 0.1
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    rows = [(np.flatnonzero(each).astype(np.int64), each[np.flatnonzero(each)]) for each in dense]
    labels = np.where(dense[:, 1:3] + 0.1 * random.standard_normal((texts, 2)) > 0.1, 1, -1).astype(np.float32)
    return rows, dense, labels


def test_machines_are_those_of_liblinear(monkeypatch: pytest.MonkeyPatch) -> None:
    svm = pytest.importorskip("sklearn.svm")
    rows, dense, labels = problem(200, 30)
    monkeypatch.setattr(train_reader, "EPOCHS", 2000)
    monkeypatch.setattr(train_reader, "SMALL", 1e-7)
    found, bias = train_reader.fit(rows, labels, 30, positives=3.0)
    for head in range(2):
        cost = np.where(labels[:, head] > 0, 3.0, 1.0)
        oracle = svm.LinearSVC(C=1.0, loss="squared_hinge", dual=True, tol=1e-8, max_iter=100_000)
        oracle.fit(dense, labels[:, head], sample_weight=cost)
        assert found[:, head] == pytest.approx(oracle.coef_[0], abs=2e-3)
        assert bias[head] == pytest.approx(oracle.intercept_[0], abs=2e-3)


@pytest.mark.parametrize("classes", [1, 3])
def test_what_combines_them_is_logistic_regression(classes: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(2)
    inputs = np.column_stack([random.standard_normal((300, 4)), np.ones(300)])
    chosen = (inputs[:, :3] + random.standard_normal((300, 3))).argmax(axis=1)
    labels = np.eye(3)[chosen] if classes == 3 else (chosen == 0).astype(np.float64)[:, None]
    found = train_reader.logistic(inputs, labels, 2.0)
    oracle = linear.LogisticRegression(C=0.5, max_iter=1000, tol=1e-8)
    oracle.fit(inputs[:, :-1], chosen if classes == 3 else chosen == 0)
    weight = found - found.mean(axis=1, keepdims=True) if classes == 3 else found
    assert pytest.approx(oracle.coef_, abs=5e-3) == weight[:-1].T


def test_labels_stand_at_the_sentences_and_numbers_that_they_quote() -> None:
    case = Case(
        file="w1", id="x", lang="en", style="terse", adversarial=(), primary="post_training", accept=(), combine=(),
        text="Founded in 1998. There are 5,200 letters with the reply sent. None of them was rated, 43% are late.",
        algorithm=("sft",), stages=("sft",), warn=("needs_eval_gate",), must_not=(), ask=None,
        reads=(
            Read("5,200 letters with the reply sent", "data.sft_pairs", 5200, "asserted"),
            Read("None of them was rated", "data.unpaired_feedback", False, "absent"),
        ),
    )  # fmt: skip
    found = train_reader.example(case)
    assert [sorted(each) for each in found.statements] == [
        [], ["data.sft_pairs=true|asserted"], ["data.unpaired_feedback=false|asserted"],
    ]  # fmt: skip
    counted = {number.quote: names for number, names in zip(found.features.found, found.counts, strict=True)}
    assert counted["5,200"] == {"data.sft_pairs.rows|asserted"}
    assert counted["1998"] == set() and counted["43%"] == set()
    labelled = dict(zip((*train_reader.ANSWERS, *train_reader.PARTS), train_reader.text_labels(case), strict=True))
    assert {name for name, true in labelled.items() if true} == {"post_training", "sft", "needs_eval_gate"}


def test_nobody_is_measured_on_a_writer_whose_texts_were_learned() -> None:
    examples = [train_reader.example(case) for case in load("learn")[::40]]
    held = train_reader.folds(examples)
    assert sorted(at for fold in held for at in fold) == list(range(len(examples)))
    for fold in held:
        writers = {examples[at].case.file for at in fold}
        rest = {examples[at].case.file for at in range(len(examples)) if at not in fold}
        assert writers & rest <= {"w3", "w10"}


def test_the_shipped_weights_were_trained_on_these_texts_by_this_program() -> None:
    assert weights().about["trained_on"] == train_reader.trained_on(), "run: python -m tools.train_reader"


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one.npz", "1"), ("other.npz", "2")):
        command = [sys.executable, "-m", "tools.train_reader", "--every", "40", "--workers", workers]
        subprocess.run([*command, "--output", str(tmp_path / name)], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
