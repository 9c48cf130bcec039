"""The DPO family against numbers worked out by hand.

Answers are one token long unless a test is about length, so r_w and r_l are what ``pairs`` is given.
Throughout σ(log 3) = 3/4 and σ(−log 3) = 1/4.
"""

from __future__ import annotations

from math import exp, log
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from align.plugins.algorithms.dpo import DPO, LOSSES, Divergence, LossName, Ratios, divergence_map
from tests.plugins.handmade import batch, metric, pairs, values

LOG3 = log(3)
NEEDS: dict[str, dict[str, Any]] = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}


def dpo(**chosen: Any) -> DPO:
    return DPO(DPO.Config(**chosen))


def value(ratios: tuple[float, float], **chosen: Any) -> float:
    """The loss of one pair with log-ratios (r_w, r_l)."""
    return values(dpo(**chosen).loss(pairs(ratios, dtype=torch.float64)))[0]


AT_THE_REFERENCE = {
    "sigmoid": log(2),  # −log σ(0)
    "sigmoid_norm": log(2),
    "robust": log(2),  # [(1−ε) log 2 − ε log 2] / (1−2ε)
    "hinge": 1.0,  # 1 − 0
    "ipo": 25.0,  # (0 − 1/0.2)²
    "exo_pair": 0.5 * (log(0.5) - log(0.999)) + 0.5 * (log(0.5) - log(0.001)),  # KL(½,½ ‖ 0.999, 0.001) = 2.761
    "nca_pair": 2 * log(2),  # log 2 (1 + ½ + ½)
    "bco_pair": 2 * log(2),
    "sppo_hard": 50.0,  # 5² + 5²
    "apo_zero": 1.0,  # 1 − ½ + ½
    "apo_down": 1.0,  # ½ + 1 − ½
    "discopop": 0.5 * log(2) + 0.5,  # s = ½
}


@pytest.mark.parametrize("loss", sorted(AT_THE_REFERENCE))
def test_value_where_policy_and_reference_agree(loss: str) -> None:
    """r_w = r_l = 0 and β = 0.1."""
    assert value((0.0, 0.0), loss_type=loss, **NEEDS.get(loss, {})) == pytest.approx(AT_THE_REFERENCE[loss], rel=1e-12)


BETA_ONE = {
    # r_w = log 3, r_l = 0, β = 1: Δ = log 3, σ(Δ) = 3/4
    "sigmoid": log(4 / 3),
    "sigmoid_norm": log(4 / 3),
    "robust": (0.9 * log(4 / 3) - 0.1 * log(4)) / 0.8,
    "hinge": 0.0,  # 1 − 1.0986 < 0
    "ipo": (LOG3 - 0.5) ** 2,
    "exo_pair": 0.75 * (log(0.75) - log(0.999)) + 0.25 * (log(0.25) - log(0.001)),
    "nca_pair": log(4 / 3) + 0.5 * log(4) + 0.5 * log(2),
    "bco_pair": log(4 / 3) + log(2),
    "sppo_hard": (LOG3 - 0.5) ** 2 + 0.25,
    "apo_zero": 0.25 + 0.5,
    "apo_down": 0.75 + 0.25,
    # s = σ(20 log 3) = 3²⁰ / (3²⁰ + 1)
    "discopop": log(4 / 3) / (3**20 + 1) + (3**20 / (3**20 + 1)) / 3,
}


@pytest.mark.parametrize("loss", sorted(BETA_ONE))
def test_value_where_the_better_answer_leads_by_log_three(loss: str) -> None:
    assert value((LOG3, 0.0), loss_type=loss, beta=1.0, **NEEDS.get(loss, {})) == pytest.approx(
        BETA_ONE[loss], rel=1e-12
    )


def test_every_loss_of_the_table_has_a_number_here() -> None:
    assert set(LOSSES) - {"sft"} == set(AT_THE_REFERENCE) == set(BETA_ONE)
    assert set(LOSSES) == set(get_args(LossName))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_table_has_the_settings_and_the_ratios_that_a_loss_reads(loss: str) -> None:
    """The settings of Δ and of r are read before the loss is: those of an answer's tail, and of the divergence."""
    read = set[str]()

    class Recorder:
        def __init__(self, values: object) -> None:
            self.values = values

        def __getattr__(self, name: str) -> object:
            read.add(name)
            return getattr(self.values, name)

    ratios = Ratios(*(torch.full((2,), 0.5) for _ in Ratios._fields))
    config = dpo(loss_type=loss, **NEEDS.get(loss, {})).config
    LOSSES[loss].function(Recorder(ratios), Recorder(config))  # type: ignore[arg-type]
    expected = read & DPO.Config.model_fields.keys()
    if read & {"delta_E", "delta_mean_E"}:
        expected |= {"f_divergence_type", "ld_alpha"}
    if read & {"chosen_E", "rejected_E"}:
        expected |= {"ld_alpha"}
    assert LOSSES[loss].settings == expected


def test_conservative_dpo_reads_label_smoothing() -> None:
    """ε = 0.1, Δ = log 3: 0.9 log(4/3) + 0.1 log 4 = 0.258914 + 0.138629 = 0.397543; TRL 1.16 gives 0.287682."""
    assert value((LOG3, 0.0), beta=1.0, label_smoothing=0.1) == pytest.approx(0.397543, abs=1e-6)
    assert value((LOG3, 0.0), beta=1.0) == pytest.approx(0.287682, abs=1e-6)


def test_conservative_dpo_rests_where_the_preference_has_the_smoothed_probability() -> None:
    """d/dΔ = −(1−ε)σ(−Δ) + εσ(Δ) = 0 where σ(Δ) = 1 − ε: at Δ = log 3 with ε = 1/4. Plain DPO never rests."""
    made = pairs((LOG3, 0.0), dtype=torch.float64)
    dpo(beta=1.0, label_smoothing=0.25).loss(made).terms[0].values.sum().backward()
    assert made.logp_T.grad is not None
    assert made.logp_T.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_robust_is_unbiased_under_label_flips() -> None:
    """(1−ε) · value of the pair + ε · value of the flipped pair = plain DPO's value, ε = 0.2."""
    smoothed = {"loss_type": "robust", "beta": 1.0, "label_smoothing": 0.2}
    mixed = 0.8 * value((LOG3, 0.0), **smoothed) + 0.2 * value((0.0, LOG3), **smoothed)
    assert mixed == pytest.approx(log(4 / 3))


def test_ipo_is_zero_at_its_target() -> None:
    """τ = 0.1: the target gap is 1/(2τ) = 5."""
    assert value((5.0, 0.0), loss_type="ipo") == pytest.approx(0.0, abs=1e-12)


def test_length_normalised_losses_divide_by_length() -> None:
    """Ratios +1 +1 over two tokens and −1 over one: means 1 and −1, so Δ̄ = 2, while Δ = 3."""
    rows = [{"chosen": [-1.0, -1.0], "rejected": [-3.0]}]
    made = batch(rows, [{"chosen": [-2.0, -2.0], "rejected": [-2.0]}])
    assert values(dpo(loss_type="sigmoid_norm", beta=1.0).loss(made)) == pytest.approx([log(1 + exp(-2))])
    assert values(dpo(loss_type="sigmoid", beta=1.0).loss(made)) == pytest.approx([log(1 + exp(-3))])
    assert values(dpo(loss_type="ipo", beta=0.25).loss(made)) == pytest.approx([0.0], abs=1e-6)


def test_ld_alpha_weights_what_lies_beyond_the_shorter_answer() -> None:
    """Chosen ratios 1, 1, 1 against one token: shared length 1, so r_w = 1 + ½(1 + 1) = 2, r_l = 0."""
    made = batch([{"chosen": [-1.0] * 3, "rejected": [-2.0]}], [{"chosen": [-2.0] * 3, "rejected": [-2.0]}])
    assert values(dpo(beta=1.0, ld_alpha=0.5).loss(made)) == pytest.approx([log(1 + exp(-2))])
    assert values(dpo(beta=1.0, ld_alpha=0.0).loss(made)) == pytest.approx([log(1 + exp(-1))])
    assert values(dpo(beta=1.0, ld_alpha=1.0).loss(made)) == values(dpo(beta=1.0).loss(made))


@pytest.mark.parametrize(
    ("divergence", "gap"),
    [
        # u_w = 4, u_l = 1
        ("reverse_kl", log(4)),
        ("forward_kl", (1 - 1 / 4) - 0.0),
        ("js_divergence", log(2 * 4 / 5) - 0.0),
        ("alpha_divergence", (1 - 4**-0.5) / 0.5),
    ],
)
def test_f_divergences_map_the_ratios(divergence: str, gap: float) -> None:
    assert value((log(4), 0.0), beta=1.0, f_divergence_type=divergence) == pytest.approx(log(1 + exp(-gap)))


@pytest.mark.parametrize("divergence", sorted(get_args(Divergence)))
def test_f_divergences_stay_finite_far_from_the_reference(divergence: str) -> None:
    """e^1000 does not exist in float32."""
    made = pairs((1000.0, -1000.0), (-1000.0, 1000.0))
    outcome = dpo(f_divergence_type=divergence).loss(made)
    outcome.terms[0].values.sum().backward()
    assert made.logp_T.grad is not None
    assert torch.tensor(values(outcome)).isfinite().all()
    assert made.logp_T.grad.isfinite().all()


def test_alpha_divergence_lies_between_reverse_and_forward_kl() -> None:
    """(1 − 4^−α)/α falls from log 4 (α → 0) to 3/4 (α = 1)."""
    ratio = torch.tensor(log(4), dtype=torch.float64)
    assert float(divergence_map(ratio, "alpha_divergence", 1e-9)) == pytest.approx(log(4), rel=1e-6)
    assert float(divergence_map(ratio, "alpha_divergence", 1.0)) == pytest.approx(0.75)


def test_a_mixture_is_one_term_each_counted_by_its_own_unit() -> None:
    """log 2 per pair, and 1 and 2 per token of the better answer: the engine divides each by its own count."""
    made = batch([{"chosen": [-1.0, -2.0], "rejected": [-5.0]}], [{"chosen": [-1.0, -2.0], "rejected": [-5.0]}])
    outcome = dpo(loss_type={"sigmoid": 0.8, "sft": 0.2}).loss(made)
    assert [(t.per, t.weight) for t in outcome.terms] == [("example", 0.8), ("token:chosen", 0.2)]
    assert values(outcome, 0) == pytest.approx([log(2)])
    assert values(outcome, 1) == [1.0, 2.0]


def test_metrics() -> None:
    """β = 0.1; a tie is not accurate."""
    outcome = dpo().loss(pairs((2.0, -1.0), (1.0, 1.0)))
    assert metric(outcome, "rewards/chosen") == pytest.approx([0.2, 0.1])
    assert metric(outcome, "rewards/rejected") == pytest.approx([-0.1, 0.1])
    assert metric(outcome, "rewards/margins") == pytest.approx([0.3, 0.0], abs=1e-7)
    assert metric(outcome, "rewards/accuracies") == [1.0, 0.0]
    assert metric(outcome, "logps/chosen") == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"sft", "discopop"}))
def test_at_the_reference_the_better_answer_rises_and_the_worse_falls(loss: str) -> None:
    """Slopes in log π(y_w) and log π(y_l). For apo_down they are β(¼ − ¼) = 0 and β/4."""
    made = pairs((0.0, 0.0), dtype=torch.float64)
    dpo(loss_type=loss, **NEEDS.get(loss, {})).loss(made).terms[0].values.sum().backward()
    assert made.logp_T.grad is not None
    better, worse = made.logp_T.grad.tolist()
    assert better <= 1e-12
    assert worse > 0


def test_discopop_is_not_monotone_at_the_reference() -> None:
    """s' = ¼/τ = 5, so dL/dx at 0 is −5 log 2 − ¼ + 5 − ½ = 0.784264: the published function's bump, not a slip.

    From x = 0.2 on it falls: s ≈ 1 and the loss is e^−x.
    """
    made = pairs((0.0, 0.0), (1.0, 0.0), dtype=torch.float64)
    dpo(loss_type="discopop", beta=1.0).loss(made).terms[0].values.sum().backward()
    assert made.logp_T.grad is not None
    assert made.logp_T.grad.tolist() == pytest.approx([0.784264, -0.784264, -exp(-1), exp(-1)], abs=1e-6)


sides = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"sft"}))
@settings(max_examples=30, deadline=None)
@given(ratios=st.lists(st.tuples(sides, sides), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_values_are_finite_and_follow_their_pairs(loss: str, ratios: list[Any], seed: int) -> None:
    """Far from the reference too; and shuffling or splitting the pairs shuffles or splits the values."""
    algorithm = dpo(loss_type=loss, **NEEDS.get(loss, {}))

    def run(*of: Any) -> tuple[list[float], list[float]]:
        rows = [{"chosen": [x - 100 for x in w], "rejected": [x - 100 for x in r]} for w, r in of]
        reference = [{role: [-100.0] * len(x) for role, x in row.items()} for row in rows]
        made = batch(rows, reference)
        outcome = algorithm.loss(made)
        outcome.terms[0].values.sum().backward()
        assert made.logp_T.grad is not None
        return values(outcome), made.logp_T.grad.tolist()

    found, slopes = run(*ratios)
    assert torch.tensor(found + slopes).isfinite().all()
    order = torch.randperm(len(ratios), generator=torch.Generator().manual_seed(seed)).tolist()
    alone = [value for pair in ratios for value in run(pair)[0]]
    assert alone == pytest.approx(found, rel=1e-6)
    assert run(*(ratios[i] for i in order))[0] == pytest.approx([found[i] for i in order], rel=1e-6)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing is not read by loss_type 'hinge'"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "it is read by sigmoid, robust, exo_pair"),
        ({"loss_type": "hinge", "label_smoothing": 0.0}, "label_smoothing is not read"),
        ({"discopop_tau": 0.1}, "discopop_tau is not read by loss_type 'sigmoid'; it is read by discopop"),
        (
            {"f_alpha": 0.3},
            "f_alpha is not read by loss_type 'sigmoid'; it is read by .* with f_divergence_type alpha_div",
        ),
        ({"loss_type": "sft", "beta": 0.1}, "beta is not read by loss_type 'sft'"),
        ({"loss_type": "sft", "ld_alpha": 0.1}, "ld_alpha is not read by loss_type 'sft'"),
        (
            {"loss_type": "apo_zero", "f_divergence_type": "reverse_kl"},
            "f_divergence_type is not read by loss_type 'apo_zero'",
        ),
        (
            {"loss_type": {"sigmoid": 1, "nca_pair": 1}, "f_divergence_type": "forward_kl"},
            "does not go with loss_type 'nca_pair'",
        ),
        ({"loss_type": "exo_pair"}, "label_smoothing must be above 0 with loss_type 'exo_pair'"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss_type": "sigmoid", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss_type": {}}, "at least 1 item"),
        ({"loss_type": {"sigmoid": 0}}, "greater than 0"),
        ({"loss_type": "aot"}, "Input should be 'sigmoid'"),
        ({"f_divergence_type": "alpha_divergence", "f_alpha": 1.0}, "less than 1"),
    ],
)
def test_settings_that_cannot_be_or_are_not_read_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPO.Config(**chosen)


@pytest.mark.parametrize(
    "chosen",
    [
        {"loss_type": {"sigmoid": 1, "hinge": 1}, "label_smoothing": 0.1},
        {"loss_type": {"sigmoid": 1, "sft": 1}, "f_divergence_type": "js_divergence", "ld_alpha": 0.5},
        {"loss_type": "ipo", "f_divergence_type": "alpha_divergence", "f_alpha": 0.3, "beta": 1},
        {"loss_type": "exo_pair", "label_smoothing": 1e-3},
        {"loss_type": "discopop", "discopop_tau": 0.1},
    ],
)
def test_settings_that_are_read_are_taken(chosen: dict[str, Any]) -> None:
    DPO.Config(**chosen)
