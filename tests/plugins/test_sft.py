"""sft and pretrain against numbers worked out by hand."""

from __future__ import annotations

from math import log

import pytest

from align.plugins.algorithms.pretrain import Pretrain
from align.plugins.algorithms.sft import SFT
from tests.plugins.handmade import batch, metric, values

HALF, QUARTER = log(0.5), log(0.25)


def test_nll_is_minus_the_log_probability_of_each_token() -> None:
    """Probabilities 1/2, 1/4 and 1/2: 0.693, 1.386, 0.693, one value a token and not a mean of sequence means."""
    outcome = SFT(SFT.Config()).loss(batch([{"completion": [HALF, QUARTER]}, {"completion": [HALF]}]))
    assert values(outcome) == pytest.approx([0.6931472, 1.3862944, 0.6931472])
    assert outcome.terms[0].per == "token"
    assert metric(outcome, "mean_token_accuracy") == [1.0, 1.0, 1.0]
    assert metric(outcome, "entropy") == [0.5, 0.5, 0.5]


def test_dft_weights_by_probability_without_its_gradient() -> None:
    """p = 1/4: value 1/4 · 1.386 = 0.3466; slope in log p is −p = −1/4, and not −p(1 + log p) = 0.097."""
    made = batch([{"completion": [QUARTER]}])
    outcome = SFT(SFT.Config(loss_type="dft")).loss(made)
    assert values(outcome) == pytest.approx([0.3465736])
    outcome.terms[0].values.sum().backward()
    assert made.logp_T.grad is not None
    assert made.logp_T.grad.tolist() == pytest.approx([-0.25])


def test_pretrain_scores_every_token_of_a_text() -> None:
    """exp of the mean of 0.693 and 1.386 is the perplexity 2^1.5."""
    algorithm = Pretrain(Pretrain.Config())
    outcome = algorithm.loss(batch([{"text": [HALF, QUARTER]}]))
    assert algorithm.scores_prompt
    assert values(outcome) == pytest.approx([0.6931472, 1.3862944])
    assert 2.718281828459045 ** (sum(values(outcome)) / 2) == pytest.approx(2**1.5)
