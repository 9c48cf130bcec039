"""Weights between trainer and generator: by hand, as laws, and what a product over long answers loses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.algorithm import importance_weights
from align.core.algorithm.contract import Experience
from align.core.algorithm.importance_weights import weights
from align.schemas.run import ImportanceSamplingCorrection

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def answer(*gaps: float, measured: bool = True) -> Experience:
    """An answer whose log-probabilities under trainer and generator differ by these."""
    sampled = np.full(len(gaps), -1.0, np.float32)
    return Experience(
        source="x:1",
        prompt=np.array([1], np.int32),
        tokens=np.arange(len(gaps), dtype=np.int32),
        finish="stop",
        sampled_logp=sampled,
        logp=(sampled + np.array(gaps, np.float32)) if measured else None,
    )


BY_HAND = [answer(LN4, 0.0), answer(-LN2), answer(LN3, LN3, LN3)]
"""Token ratios 4, 1 | 1/2 | 3, 3, 3. Products 4, 1/2, 27. Geometric means 2, 1/2, 3."""


@pytest.mark.parametrize(
    ("level", "normalized", "kind", "limit", "expected"),
    [
        ("token", True, "truncate", 3.5, [[3.5, 1], [0.5], [3, 3, 3]]),
        ("token", True, "mask", 3.5, [[0, 1], [0.5], [3, 3, 3]]),
        ("token", True, "mask", 1.5, [[0, 1], [0], [0, 0, 0]]),
        ("sequence", False, "truncate", 10.0, [[4, 4], [0.5], [10, 10, 10]]),
        ("sequence", False, "mask", 10.0, [[4, 4], [0.5], [0, 0, 0]]),
        ("sequence", False, "mask", 1.9, [[0, 0], [0], [0, 0, 0]]),
        ("sequence", True, "truncate", 2.5, [[2, 2], [0.5], [2.5, 2.5, 2.5]]),
        ("sequence", True, "mask", 2.5, [[2, 2], [0.5], [0, 0, 0]]),
    ],
)
def test_weights_by_hand(level: Any, normalized: bool, kind: Any, limit: float, expected: list[list[float]]) -> None:
    """Two levels, two ways to cut."""
    found, _ = weights(
        BY_HAND, ImportanceSamplingCorrection(type=kind, level=level, length_normalized=normalized, clip_max=limit)
    )
    assert found is not None
    assert [w.dtype for w in found] == [np.float32] * 3
    for w, by_hand in zip(found, expected, strict=True):
        np.testing.assert_allclose(w, by_hand, rtol=1e-6)


def test_metrics_by_hand() -> None:
    """Sequence products 4, 1/2, 27 truncated at 10: weights 4, 1/2, 10."""
    _, metrics = weights(
        BY_HAND, ImportanceSamplingCorrection(type="truncate", level="sequence", length_normalized=False, clip_max=10)
    )
    assert metrics == pytest.approx(
        {
            "sampling/sampling_logp_difference/mean": (LN4 + 0 + LN2 + 3 * LN3) / 6,
            "sampling/sampling_logp_difference/max": LN4,
            "sampling/importance_sampling_ratio/min": 0.5,
            "sampling/importance_sampling_ratio/mean": 14.5 / 3,
            "sampling/importance_sampling_ratio/max": 10.0,
            "sampling/effective_sample_size": 14.5**2 / (3 * (16 + 0.25 + 100)),
            "sampling/lost_mass": 17 / 31.5,
        },
        rel=1e-6,
    )


def test_type_none_corrects_nothing_and_still_reports() -> None:
    """The ratios as they are: 4, 1, 1/2, 3, 3, 3."""
    found, metrics = weights(BY_HAND, ImportanceSamplingCorrection(type="none"))
    assert found is None
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(4)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(14.5 / 6)
    assert metrics["sampling/effective_sample_size"] == pytest.approx(14.5**2 / (6 * (16 + 1 + 0.25 + 27)))
    assert metrics["sampling/lost_mass"] == 0


def test_what_was_not_measured() -> None:
    """No correction, no metrics; a correction asked for needs every answer measured."""
    unmeasured = [answer(0.1, measured=False)]
    assert weights(unmeasured, ImportanceSamplingCorrection()) == (None, {})
    assert weights([], ImportanceSamplingCorrection(type="mask")) == ([], {})
    for some in (unmeasured, [*BY_HAND, *unmeasured]):
        with pytest.raises(ValueError, match="every answer"):
            weights(some, ImportanceSamplingCorrection(type="mask"))


def test_everything_masked_is_no_division_by_zero() -> None:
    """Effective sample size 0, all of the mass lost."""
    found, metrics = weights([answer(LN3), answer(-LN3)], ImportanceSamplingCorrection(type="mask", clip_max=2))
    assert found is not None and [w.tolist() for w in found] == [[0.0], [0.0]]
    assert metrics["sampling/effective_sample_size"] == 0
    assert metrics["sampling/lost_mass"] == 1


def test_extreme_gaps_stay_finite_and_what_is_not_a_number_is_not_hidden() -> None:
    """A hopeless mismatch is reported in finite numbers; NaN reaches the weights, so that the guard sees it."""
    extreme = [answer(1e6), answer(-math.inf), answer(0.0)]
    for kind in ("none", "truncate", "mask"):
        found, metrics = weights(extreme, ImportanceSamplingCorrection(type=kind, level="sequence"))
        numbers = [v for k, v in metrics.items() if "logp_difference" not in k]
        assert np.isfinite(numbers).all()
        assert found is None or np.isfinite(np.concatenate(found)).all()
    found, _ = weights([answer(math.nan), answer(0.0)], ImportanceSamplingCorrection(type="mask"))
    assert found is not None and np.isnan(found[0]).all() and found[1].tolist() == [1.0]


def test_answers_without_tokens_have_no_weights_and_weigh_one() -> None:
    found, metrics = weights([answer(), answer()], ImportanceSamplingCorrection(type="mask"))
    assert found is not None and metrics == {}
    assert [(w.shape, w.dtype) for w in found] == [((0,), np.float32)] * 2
    found, metrics = weights(
        [answer(LN2), answer()], ImportanceSamplingCorrection(type="truncate", level="sequence", clip_max=3)
    )
    assert found is not None and [w.tolist() for w in found] == [[pytest.approx(2)], []]
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.5)


def test_equal_weights_are_a_whole_sample_however_small() -> None:
    """Also where the trainer holds every answer for impossible."""
    for gap in (-2.3, -math.inf):
        _, metrics = weights([answer(gap), answer(gap)], ImportanceSamplingCorrection(type="truncate"))
        assert metrics["sampling/effective_sample_size"] == pytest.approx(1)
        assert metrics["sampling/lost_mass"] == 0


def test_the_limits_themselves_are_kept() -> None:
    whole = np.array([0.49, 0.5, 2.0, 2.01])
    assert importance_weights._cut(whole, ImportanceSamplingCorrection(type="mask", clip_max=2)).tolist() == [
        0,
        0.5,
        2,
        0,
    ]


GAPS = st.lists(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6), min_size=1, max_size=6)
SETTINGS = st.builds(
    ImportanceSamplingCorrection,
    type=st.sampled_from(["truncate", "mask"]),
    level=st.sampled_from(["token", "sequence"]),
    length_normalized=st.booleans(),
    clip_max=st.floats(1.01, 10),
)


@settings(max_examples=200, deadline=None)
@given(GAPS, SETTINGS)
def test_laws(gaps: list[list[float]], chosen: ImportanceSamplingCorrection) -> None:
    """Weights are within the limits, each for one token; shares are shares; exact agreement weighs 1."""
    found, metrics = weights([answer(*each) for each in gaps], chosen)
    assert found is not None and [len(w) for w in found] == [len(each) for each in gaps]
    flat = np.concatenate(found)
    slack = 1 + 1e-5
    assert (flat >= 0).all() and (flat <= chosen.clip_max * slack).all()
    if chosen.type == "mask":
        assert ((flat == 0) | (flat >= 1 / (chosen.clip_max * slack))).all()
    if chosen.level == "sequence":
        assert all(np.unique(w).size == 1 for w in found)
    assert -1e-9 <= metrics["sampling/lost_mass"] <= 1
    assert 0 <= metrics["sampling/effective_sample_size"] <= 1 + 1e-9

    same, metrics = weights([answer(*[0.0] * len(each)) for each in gaps], chosen)
    assert same is not None and (np.concatenate(same) == 1).all()
    assert metrics["sampling/effective_sample_size"] == pytest.approx(1)


def noisy(answers: int, length: int, spread: float) -> list[Experience]:
    """Independent gaps, normal, of mean -spread^2 / 2: every ratio has mean 1 under the generator."""
    random = np.random.default_rng(0)
    return [answer(*random.normal(-(spread**2) / 2, spread, length)) for _ in range(answers)]


def test_a_product_over_long_answers_loses_its_mass_to_rounding() -> None:
    """log w is normal with deviation s = 0.02 * 64 = 1.28 and mean -s^2 / 2.

    P(w > 3) = Phi(-(ln 3 + s^2/2) / s) = 6.7 %; its mass E[w; w > 3] = Phi(-(ln 3 - s^2/2) / s) = 41.4 %. The mask's
    lower bound takes as many answers again as the upper takes mass (a log-normal of mean 1 is its own mirror image):
    48 % of the answers, 48 % of the mass. With the upper bound alone the effective sample size is 46 %.
    """
    answers = noisy(3000, 4096, 0.02)
    product = ImportanceSamplingCorrection(type="truncate", level="sequence", length_normalized=False, clip_max=3)
    cut, metrics = weights(answers, product)
    _, uncut = weights(answers, product.model_copy(update={"type": "none"}))
    assert cut is not None
    above = np.array([w[0] for w in cut]) >= 3
    whole = uncut["sampling/importance_sampling_ratio/mean"]
    mass = metrics["sampling/lost_mass"] + 3 * above.mean() / whole
    assert whole == pytest.approx(1, abs=0.08)  # its standard error is 0.037
    assert above.mean() == pytest.approx(0.067, abs=0.01)
    assert mass == pytest.approx(0.414, abs=0.05)

    kept = np.where(above, 0, [w[0] for w in cut])  # the upper bound alone
    assert kept.sum() ** 2 / (len(kept) * (kept**2).sum()) == pytest.approx(0.4625, abs=0.03)

    mask, metrics = weights(answers, product.model_copy(update={"type": "mask"}))
    assert mask is not None
    assert np.mean([w[0] == 0 for w in mask]) == pytest.approx(0.48, abs=0.03)
    assert metrics["sampling/lost_mass"] == pytest.approx(0.48, abs=0.05)

    for kind in ("truncate", "mask"):
        _, metrics = weights(
            answers, ImportanceSamplingCorrection(type=kind, level="sequence", length_normalized=True, clip_max=3)
        )
        assert metrics["sampling/lost_mass"] == 0
        assert metrics["sampling/effective_sample_size"] > 0.9999
        assert metrics["sampling/importance_sampling_ratio/max"] < 1.002
        assert metrics["sampling/importance_sampling_ratio/min"] > 0.998


def test_a_smaller_gap_over_a_shorter_answer_loses_nothing() -> None:
    """0.01 over 512 tokens: s = 0.226, the limit of 3 is 5 deviations away."""
    product = ImportanceSamplingCorrection(type="mask", level="sequence", length_normalized=False, clip_max=3)
    _, metrics = weights(noisy(1000, 512, 0.01), product)
    assert metrics["sampling/lost_mass"] == 0
