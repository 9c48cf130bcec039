"""The log-probability primitive against the plain computation over full logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.core.models.policy import TokenScores, token_logprobs

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]


def inputs(dtype: torch.dtype, tokens: int = 37, bias: bool = True, seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(tokens, 16), draw(50, 16), draw(50) if bias else None, torch.randint(50, (tokens,), generator=g)


def naive(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> TokenScores:
    """All logits at once, in the textbook's order."""
    z = (hidden @ weight.T + (0 if bias is None else bias)) * logit_scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    logp = z.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    correct = (z.argmax(-1) == target).to(z.dtype)
    return TokenScores(logp.gather(-1, target[:, None])[:, 0], entropy, correct, z.mean(-1))


HEADS = {
    "plain": {},
    "scale": {"logit_scale": 0.25},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.7},
    "all": {"logit_scale": 1.7, "softcap": 5.0, "temperature": 1.3},
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [0, 1, 11, 37, 1000])
@pytest.mark.parametrize(("chunk", "tile"), [(1, None), (5, 2), (37, 8), (1000, None)])
def test_values_and_gradients_equal_full_logits(
    head: dict[str, float], bias: bool, dtype: torch.dtype, chunk: int, tile: int | None, kept: int
) -> None:
    # Each logit is a sum of 16 products of normal numbers, of size 4, and at most 15 after scale and temperature.
    near = 16 * 15 * torch.finfo(dtype).eps
    given_ = inputs(dtype, bias=bias)
    keep = kept * 50 * dtype.itemsize
    ours, theirs = token_logprobs(*given_, chunk, tile=tile, keep=keep, **head), naive(*given_, **head)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=near, atol=near)
    # Any upstream gradient: losses weigh tokens differently, and with both signs.
    upstream = torch.linspace(-2, 3, len(given_[3]), dtype=dtype)
    leaves = [x for x in given_[:3] if x is not None]
    mine = torch.autograd.grad(ours.logp_T @ upstream, leaves)
    other = torch.autograd.grad(theirs.logp_T @ upstream, leaves)
    for m, o in zip(mine, other, strict=True):
        assert (m - o).norm() <= near * o.norm()


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 2**31))
def test_the_chunk_changes_nothing(tokens: int, chunk: int, seed: int) -> None:
    given_ = inputs(torch.float64, tokens, seed=seed)
    one, many = token_logprobs(*given_, chunk), token_logprobs(*given_, 10**6)
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    leaves = [x for x in given_[:3] if x is not None]
    for a, b in zip(
        torch.autograd.grad(one.logp_T.sum(), leaves), torch.autograd.grad(many.logp_T.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_gradcheck(kept: int) -> None:
    hidden, weight, bias, target = inputs(torch.float64, 6)
    options: dict[str, float] = {"softcap": 4.0, "logit_scale": 0.5, "tile": 3, "keep": kept * 50 * 8}
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, b, target, 4, **options).logp_T,  # type: ignore[arg-type]
        (hidden, weight, bias),
    )


def gradients(scores: TokenScores, given_: Inputs) -> tuple[Tensor, ...]:
    """Of a loss that weighs tokens differently, with both signs."""
    upstream = torch.linspace(-2, 3, len(given_[3]), dtype=scores.logp_T.dtype)
    return torch.autograd.grad(scores.logp_T @ upstream, [x for x in given_[:3] if x is not None])


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_is_to_the_bit_what_backward_would_compute(
    head: dict[str, float], bias: bool, dtype: torch.dtype
) -> None:
    """Where both multiply all tokens at once; over several products sums are rounded in another order."""
    given_ = inputs(dtype, bias=bias)
    again = token_logprobs(*given_, 37, tile=8, **head)
    kept = token_logprobs(*given_, 37, tile=8, keep=37 * 50 * dtype.itemsize, **head)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(again, given_), gradients(kept, given_), strict=True))


@pytest.mark.parametrize(("bytes_", "tokens"), [(0, 0), (199, 0), (200, 1), (399, 1), (7400, 37), (10**9, 37)])
def test_no_more_is_kept_than_the_budget(bytes_: int, tokens: int) -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    logp_T = token_logprobs(hidden, weight, bias, target, 8, keep=bytes_).logp_T
    assert logp_T.grad_fn is not None
    (kept,) = [x for x in logp_T.grad_fn.saved_tensors if x is not None and x.shape[-1:] == (50,) and x.ndim == 2]  # type: ignore[attr-defined]
    assert kept.shape == (tokens, 50)


@pytest.mark.parametrize("case", ["frozen head", "no gradient"])
def test_nothing_is_kept_where_no_head_learns(case: str) -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    if case == "frozen head":
        logp_T = token_logprobs(hidden, weight.detach(), bias.detach(), target, 8, keep=10**9).logp_T  # type: ignore[union-attr]
        saved = logp_T.grad_fn.saved_tensors  # type: ignore[union-attr]
        assert all(x is None or x.shape[-1:] != (50,) or not x.numel() for x in saved if x is not None and x.ndim == 2)
        expected = naive(hidden, weight, bias, target).logp_T
        for mine, other in zip(
            torch.autograd.grad(logp_T.sum(), hidden), torch.autograd.grad(expected.sum(), hidden), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    else:
        with torch.no_grad():
            assert token_logprobs(hidden, weight, bias, target, 8, keep=10**9).logp_T.grad_fn is None


@pytest.mark.parametrize("metrics", [True, False])
def test_log_probabilities_are_the_same_with_and_without_metrics_and_gradient(metrics: bool) -> None:
    given_ = inputs(torch.float32)
    expected = token_logprobs(*given_, 8, tile=3).logp_T
    assert torch.equal(token_logprobs(*given_, 8, tile=3, keep=3000, metrics=metrics).logp_T[15:], expected[15:])
    with torch.no_grad():
        assert torch.equal(token_logprobs(*given_, 8, tile=3, metrics=metrics).logp_T, expected)


def test_by_hand() -> None:
    """Logits (ln 1, ln 2, ln 5): probabilities 1/8, 2/8, 5/8."""
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    scores = token_logprobs(torch.ones(2, 1), weight, None, torch.tensor([1, 2]), 1)
    assert scores.logp_T.tolist() == pytest.approx([math.log(2 / 8), math.log(5 / 8)])
    entropy = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    assert scores.entropy_T is not None and scores.entropy_T.tolist() == pytest.approx([entropy] * 2)
    assert scores.correct_T is not None and scores.correct_T.tolist() == [0.0, 1.0]
    assert scores.logit_T is not None and scores.logit_T.tolist() == pytest.approx([math.log(10) / 3] * 2)


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e4, 1e18])
def test_finite_and_right_at_extremes(size: float) -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    hidden = (hidden.detach() * size).requires_grad_()
    scores = token_logprobs(hidden, weight, bias, target, 8)
    exact = naive(hidden.double(), weight.double(), None if bias is None else bias.double(), target)
    torch.testing.assert_close(scores.logp_T.double(), exact.logp_T, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(scores.entropy_T).all()
    for grad in torch.autograd.grad(scores.logp_T.sum(), (hidden, weight, bias)):
        assert torch.isfinite(grad).all()


def test_digits_survive_a_large_common_offset() -> None:
    """Logits 10,000 and 10,000.5: the log-sum alone would be rounded to a thousandth."""
    bias = torch.tensor([1e4, 1e4 + 0.5], requires_grad=True)
    scores = token_logprobs(torch.zeros(2, 1), torch.zeros(2, 1), bias, torch.tensor([0, 1]), 1)
    sigmoid = 1 / (1 + math.exp(-0.5))
    assert scores.logp_T.tolist() == pytest.approx([math.log(1 - sigmoid), math.log(sigmoid)], rel=1e-6)
    (grad,) = torch.autograd.grad(scores.logp_T[0], bias)
    assert grad.tolist() == pytest.approx([sigmoid, -sigmoid], rel=1e-6)


def test_a_word_that_cannot_come_costs_nothing() -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    barred = bias.detach().clone()
    barred[7] = -math.inf
    target[target == 7] = 8
    scores = token_logprobs(hidden, weight, barred, target, 8)
    assert torch.isfinite(scores.logp_T).all() and torch.isfinite(scores.entropy_T).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(scores.logp_T.sum(), (hidden, weight)))


@pytest.mark.parametrize("kept", [0, 11, 37])
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(kept: int) -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = token_logprobs(hidden, weight, bias, target, 8, tile=3, keep=kept * 50 * 2)
        logits = torch.nn.functional.linear(hidden, weight, bias)
    assert logits.dtype == torch.bfloat16
    assert scores.logp_T.dtype == torch.float32
    rounded = logits.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(scores.logp_T, rounded, rtol=1e-5, atol=1e-5)
    # Backward after the autocast region, as Lightning may run it: gradients in the parameters' type.
    mine = torch.autograd.grad(scores.logp_T.sum(), (hidden, weight))
    other = torch.autograd.grad(naive(hidden, weight, bias, target).logp_T.sum(), (hidden, weight))
    for m, o in zip(mine, other, strict=True):
        assert m.dtype == torch.float32
        assert (m - o).norm() <= 0.02 * o.norm()


@pytest.mark.parametrize("kept", [0, 100, 400])
def test_bfloat16_weights_get_bfloat16_gradients_summed_in_float32(kept: int) -> None:
    hidden, weight, bias, target = inputs(torch.bfloat16, 400)
    exact = naive(hidden.double(), weight.double(), bias.double(), target)
    many = torch.autograd.grad(
        token_logprobs(hidden, weight, bias, target, 1, keep=kept * 50 * 2).logp_T.sum(), weight
    )[0]
    full = torch.autograd.grad(exact.logp_T.sum(), weight)[0]
    assert many.dtype == torch.bfloat16
    assert (many.double() - full.double()).norm() <= 0.02 * full.norm()


def test_only_logp_carries_gradient_and_metrics_can_be_left_out() -> None:
    given_ = inputs(torch.float32)
    scores = token_logprobs(*given_, 8)
    assert scores.logp_T.requires_grad
    assert not any(x.requires_grad for x in scores[1:])
    assert token_logprobs(*given_, 8, metrics=False)[1:] == (None, None, None)
    with torch.no_grad():
        assert not token_logprobs(*given_, 8).logp_T.requires_grad


def test_a_frozen_head_passes_gradient_to_the_hidden_states_only() -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    scores = token_logprobs(hidden, weight.detach(), bias.detach(), target, 8)
    scores.logp_T.sum().backward()
    expected = torch.autograd.grad(naive(hidden, weight, bias, target).logp_T.sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 10**6])
def test_a_head_learns_alone(keep: int) -> None:
    hidden, weight, bias, target = inputs(torch.float32)
    scores = token_logprobs(hidden.detach(), weight, bias, target, 8, softcap=3.0, keep=keep)
    scores.logp_T.sum().backward()
    expected = torch.autograd.grad(naive(hidden, weight, bias, target, softcap=3.0).logp_T.sum(), (weight, bias))
    torch.testing.assert_close(weight.grad, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 10**6])
def test_no_tokens_still_give_zero_gradients(keep: int) -> None:
    hidden, weight, bias, target = inputs(torch.float32, 0)
    scores = token_logprobs(hidden, weight, bias, target, 8, keep=keep)
    assert scores.logp_T.shape == (0,)
    scores.logp_T.sum().backward()
    assert weight.grad.abs().sum() == 0 == bias.grad.abs().sum()
