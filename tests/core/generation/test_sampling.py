"""The law of each draw, against theory, an independent reference in numpy, and transformers' own processors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from align.core.generation.decode import BLOCK, FEW, NUCLEUS, draw_tokens, process_logits, seed_of, uniforms
from align.schemas.errors import AlignError
from align.schemas.run import Sampling

DRAWS = 20_000


def frequencies(logits: list[float], sampling: Sampling, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """How often each token is drawn, and the log-probability that was told of it (NaN: never drawn)."""
    token_B, logp_B = draw_tokens(
        torch.tensor([logits]).expand(DRAWS, -1), sampling, torch.from_numpy(uniforms(seed, DRAWS)), None
    )
    told = np.full(len(logits), math.nan)
    told[token_B.numpy()] = logp_B.numpy()
    return np.bincount(token_B.numpy(), minlength=len(logits)), told


def reference(logits: list[float], s: Sampling, seen: set[int] = frozenset()) -> NDArray[np.float64]:  # type: ignore[assignment]
    """Probabilities, token by token and in plain sums."""
    r = s.repetition_penalty
    x = [(v / r if v > 0 else v * r) if i in seen else v for i, v in enumerate(logits)]
    p = np.exp((np.array(x, np.float64) - max(x)) / s.temperature)
    if s.top_k:
        p[p < np.sort(p)[::-1][min(s.top_k, len(p)) - 1]] = 0
    p /= p.sum()
    if s.top_p < 1:
        mass, kept = 0.0, []
        for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
            if mass >= s.top_p:
                break
            mass, kept = mass + p[i], [*kept, i]
        p = np.array([p[i] if i in kept else 0.0 for i in range(len(p))])
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.731), (0.5, 0.881)])
def test_logits_1_2_give_73_percent_and_at_half_the_temperature_88(temperature: float, share: float) -> None:
    counts, told = frequencies([1.0, 2.0], Sampling(temperature=temperature))
    exact = 1 / (1 + math.exp(-1 / temperature))
    assert exact == pytest.approx(share, abs=5e-4)
    assert chisquare(counts, [DRAWS * (1 - exact), DRAWS * exact]).pvalue > 0.01
    assert np.exp(told) == pytest.approx([1 - exact, exact], abs=1e-6)


LOGITS = [0.3, 2.0, -1.0, 2.0, 0.0, 1.1, -0.4, 0.9, -3.0, 1.7]
SETTINGS = [
    Sampling(),
    Sampling(temperature=2.0),
    Sampling(top_k=3),
    Sampling(top_p=0.6),
    Sampling(min_p=0.3),
    Sampling(temperature=0.7, top_k=6, top_p=0.9, min_p=0.1),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_frequencies_are_those_of_an_independent_reference(sampling: Sampling) -> None:
    counts, told = frequencies(LOGITS, sampling)
    p = reference(LOGITS, sampling)
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], DRAWS * p[p > 0]).pvalue > 0.01
    assert np.exp(told[p > 0]) == pytest.approx(p[p > 0], abs=1e-6)


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK + 1, FEW, FEW + 1, FEW + 2 * BLOCK])
def test_frequencies_over_several_blocks_of_the_vocabulary(vocabulary: int) -> None:
    logits = np.random.default_rng(0).normal(size=vocabulary).tolist()
    counts, told = frequencies(logits, Sampling(top_p=0.95))
    p = reference(logits, Sampling(top_p=0.95))
    assert counts[p == 0].sum() == 0 and chisquare(counts[p > 0], DRAWS * p[p > 0]).pvalue > 0.01
    drawn = counts > 0
    assert np.exp(told[drawn]) == pytest.approx(p[drawn], abs=1e-6)


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_token_with_probability() -> None:
    for vocabulary in (2 * BLOCK + 3, FEW + 3, FEW + BLOCK):
        logits = torch.full((2, vocabulary), -math.inf)
        logits[:, 5], logits[:, 2 * BLOCK + 1] = 0.0, 1.0
        token_B, _ = draw_tokens(logits, Sampling(), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
        assert token_B.tolist() == [5, 2 * BLOCK + 1]


def kept(logits: list[float], **settings: Any) -> list[int]:
    x = process_logits(torch.tensor([logits]), Sampling(**settings))
    return torch.isfinite(x[0]).nonzero()[:, 0].tolist()


def test_edges_by_hand() -> None:
    assert kept([1.0, 3.0, 2.0], top_p=1e-6) == [1], "less than the top token's probability keeps that"
    assert kept([1.0, 3.0, 2.0], top_k=1) == [1]
    assert kept([1.0, 3.0, 2.0], top_k=99) == [0, 1, 2], "more than the vocabulary is off"
    assert kept([2.0, 1.0, 2.0, 2.0], top_k=2) == [0, 2, 3], "equals of the k-th stay"
    assert kept([0.0] * 4, top_p=0.5) == [0, 1], "the fewest that reach p, lowest ids first"
    assert kept([0.0] * 4, top_p=0.51) == [0, 1, 2]
    assert kept([0.0, math.log(2), math.log(4)], min_p=0.5) == [1, 2], "half as likely as the top stays"
    assert kept([0.0, math.log(2), math.log(4)], min_p=1.0) == [2]
    assert kept([0.0] * (2 * NUCLEUS), top_p=0.75) == list(range(3 * NUCLEUS // 2)), "beyond the first look"


def test_greedy_takes_the_lowest_id_among_equals_and_tells_the_models_own_log_probability() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0], [0.0, 4.0, -1.0, 3.9]])
    seen = torch.tensor([[False] * 4, [False, True, False, False]])
    greedy = Sampling(temperature=0, repetition_penalty=2.0, top_k=2)
    token_B, logp_B = draw_tokens(logits, greedy, torch.zeros(2, dtype=torch.float64), seen)
    assert token_B.tolist() == [1, 3]
    torch.testing.assert_close(logp_B, logits.log_softmax(-1)[[0, 1], [1, 3]])


def test_the_penalty_by_hand() -> None:
    x = process_logits(
        torch.tensor([[2.0, -2.0, 2.0]]), Sampling(repetition_penalty=4.0), torch.tensor([[True, True, False]])
    )
    assert x.tolist() == [[0.5, -8.0, 2.0]]


def test_logits_that_are_not_finite_stop_the_draw() -> None:
    for bad in (math.nan, math.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(AlignError, match="logits are not finite"):
                draw_tokens(torch.tensor([[0.0, bad]]), Sampling(temperature=temperature), torch.tensor([0.5]).double())
            with pytest.raises(AlignError, match="logits are not finite"):
                logits = torch.tensor([[0.0] * 2 * FEW + [bad]])
                draw_tokens(logits, Sampling(temperature=temperature), torch.tensor([0.5]).double())


ROWS = st.lists(st.integers(-40, 40).map(lambda i: i / 4), min_size=1, max_size=40)


@given(ROWS, st.integers(0, 50), st.floats(0.01, 1), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_laws_of_truncation(row: list[float], k: int, p: float, m: float, temperature: float) -> None:
    logits = torch.tensor([row])
    settings = {"top_k": k, "top_p": p, "min_p": m}
    x = process_logits(logits, Sampling(temperature=temperature, **settings))[0]
    on = torch.isfinite(x)
    assert on[logits[0].argmax()], "the likeliest stays"
    assert torch.equal(x[on], logits[0][on] / temperature), "what stays is as it was"
    if 0 < k < len(row):
        assert on.sum() <= (logits[0] >= logits[0].sort(descending=True).values[k - 1]).sum()
    for name, value in settings.items():  # each cut alone keeps at least what all together keep
        alone = torch.isfinite(process_logits(logits, Sampling(temperature=temperature, **{name: value}))[0])
        assert not bool((on & ~alone).any())
    looser = torch.isfinite(process_logits(logits, Sampling(temperature=temperature, top_p=min(1.0, p * 1.5)))[0])
    tighter = torch.isfinite(process_logits(logits, Sampling(temperature=temperature, top_p=p))[0])
    assert not bool((tighter & ~looser).any())
    if p < 1:  # enough, and no more than enough
        probability = (logits[0].double() / temperature).softmax(-1)
        assert probability[tighter].sum() >= p - 1e-6
        assert probability[tighter].sum() - probability[tighter].min() <= p + 1e-6


@given(st.integers(0, 2**31), st.sampled_from([1.0, 1.3, 0.8]), st.sampled_from([0, 3, 200]), st.floats(0.05, 1))
def test_the_same_as_transformers_processors(seed: int, penalty: float, k: int, p: float) -> None:
    torch.manual_seed(seed)
    logits, ids = torch.randn(3, 150) * 3, torch.randint(150, (3, 8))
    seen = torch.zeros(3, 150, dtype=torch.bool).scatter_(1, ids, True)
    sampling = Sampling(temperature=0.7, top_k=k, top_p=p, min_p=0.02, repetition_penalty=penalty)
    theirs = TemperatureLogitsWarper(0.7)(ids, RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()))
    theirs = TopKLogitsWarper(k)(ids, theirs) if k else theirs
    theirs = MinPLogitsWarper(0.02)(ids, TopPLogitsWarper(p)(ids, theirs) if p < 1 else theirs)
    torch.testing.assert_close(process_logits(logits, sampling, seen), theirs)


def test_streams_follow_from_their_seeds_alone() -> None:
    assert np.array_equal(uniforms(7, 1000)[:10], uniforms(7, 10))
    numbers = np.array([uniforms(seed, 50) for seed in range(10_000, 15_000)])
    assert kstest(numbers.ravel(), "uniform").pvalue > 0.01 and kstest(numbers[:, 0], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.01
    assert uniforms(2**63 - 1, 1)[0] != uniforms(0, 1)[0]
    assert len({seed_of(s, i, k) for s in range(5) for i in range(5) for k in range(5)}) == 125
    assert min(seed_of(0, i, 0) for i in range(99)) >= 0 and max(seed_of(0, i, 0) for i in range(99)) < 2**63
