"""The resources of a plan: hardware, work, what had to be assumed; the laws that hold for any project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.estimate import memory_formulas, memory_plans
from align.advisor.estimate.memory_formulas import Setting
from align.advisor.estimate.model_shape import typical_shape
from align.advisor.estimate.plan_fit import plan_fit
from align.advisor.predicates import DATA_OF
from align.advisor.project_facts import Facts
from align.advisor.thresholds import shipped
from align.schemas.advice import Assumption, Estimate, HardwareFit, PlanStep
from align.schemas.errors import AlignError
from align.schemas.project import Project


def taken(
    stages: list[str], prices: Path | None = None, **form: Any
) -> tuple[HardwareFit | None, Estimate | None, list[Assumption]]:
    facts = Facts(Project.model_validate(form))
    return plan_fit(facts, [PlanStep(stage=stage, why=[]) for stage in stages], shipped(), None, prices)


def rows(kind: str, count: int, **more: int) -> dict[str, Any]:
    return {"kind": kind, "size": {"rows": count, **more}}


GPU = {"gpus": 2, "gpu": "A100", "memory_gb": 80}


def test_work_by_hand() -> None:
    """1,000 pairs of 600 tokens, twice; (4 + 2) P D with an adapter that recomputes; P = 8.03B."""
    found, spent, assumed = taken(["sft"], model={"params_b": 8}, hardware=GPU, data=[rows("sft_pairs", 1000)])
    assert found is not None and found.chosen is not None and found.chosen.strategy == "lora-ddp"
    assert found.given == "2 x A100-80, 80 GB each" and found.capacity_gb == 80
    assert spent is not None and spent.tokens is not None and spent.flops is not None and spent.gpu_hours is not None
    assert spent.tokens.low == 1_200_000
    flops = 6 * 8_030_261_248 * 1_200_000
    assert spent.flops.low == pytest.approx(flops, rel=0.01)
    assert spent.gpu_hours.high == pytest.approx(flops / (0.35 * 312e12) / 3600, rel=0.01)
    assert {each.fact for each in assumed} >= {"tokens per row = 600", "train.num_train_epochs = 2"}


def test_what_is_known_is_not_assumed() -> None:
    held = [rows("sft_pairs", 1000, tokens=250_000)]
    _, spent, assumed = taken(["sft"], model={"params_b": 8}, hardware=GPU, data=held, training={"max_length": 512})
    assert spent is not None and spent.tokens is not None and spent.tokens.low == 500_000
    assert not any("tokens per row" in each.fact or "max_length" in each.fact for each in assumed)


def test_full_weights_first_where_they_should_be() -> None:
    def chosen(stage: str, data: dict[str, Any]) -> str:
        found, _, _ = taken([stage], model={"params_b": 1}, hardware={**GPU, "gpus": 8}, data=[data])
        assert found is not None and found.chosen is not None
        return found.chosen.strategy

    assert chosen("sft", rows("sft_pairs", 5_000)) == "lora-ddp"
    assert chosen("sft", rows("sft_pairs", 500_000)) == "full-ddp"
    assert chosen("continual_pretraining", {"kind": "corpus", "size": {"tokens": 2_000_000_000}}) == "full-ddp"


def test_weights_are_kept_for_a_step_where_they_fit_and_dropped_after_each_layer_where_not() -> None:
    found, _, _ = taken(
        ["continual_pretraining"],
        model={"params_b": 8},
        hardware={"gpus": 4, "memory_gb": 80, "cpu_ram_gb": 2000},
        data=[{"kind": "corpus", "size": {"tokens": 2_000_000_000}}],
    )
    assert found is not None and found.chosen is not None and found.chosen.strategy == "full-fsdp-zero2"
    told = {fit.strategy: fit for fit in found.rejected}
    assert list(told) == ["full-ddp"] and told["full-ddp"].short_gb > 0


def test_no_hardware_no_verdict_and_no_model_no_estimate() -> None:
    found, spent, _ = taken(["sft"], model={"params_b": 8}, data=[rows("sft_pairs", 1000)])
    assert found is not None and found.capacity_gb is None and found.given == "not stated"
    assert found.chosen is not None and found.chosen.total_gb > 16
    assert spent is not None and spent.flops is not None and spent.gpu_hours is None
    assert taken(["sft"], data=[rows("sft_pairs", 1000)])[:2] == (None, None)
    assert taken(["prompting", "rag"], model={"params_b": 8}, hardware=GPU)[:2] == (None, None)


def test_a_model_that_is_here_is_read(tiny_model_dir: Path) -> None:
    found, spent, assumed = taken(
        ["sft"], model={"name": str(tiny_model_dir)}, hardware=GPU, data=[rows("sft_pairs", 1000)]
    )
    assert found is not None and spent is not None and "P = 39.1k" in spent.basis
    assert not any(each.fact.startswith("model.shape") for each in assumed)


def test_stages_add_up_and_the_unknown_is_named() -> None:
    form = {"model": {"params_b": 8}, "hardware": GPU}
    both = [rows("sft_pairs", 1000), rows("preference_pairs", 1000)]
    one, two = taken(["sft"], **form, data=both)[1], taken(["sft", "dpo"], **form, data=both)[1]
    assert one is not None and two is not None and one.flops is not None and two.flops is not None
    assert two.flops.high > one.flops.high
    _, spent, _ = taken(["sft", "grpo"], **form, data=both)
    assert spent is not None and "without grpo" in spent.basis


def test_cost_needs_a_price(tmp_path: Path) -> None:
    form = {"model": {"params_b": 8}, "hardware": GPU, "data": [rows("sft_pairs", 10_000)]}
    assert taken(["sft"], **form)[1].cost is None  # type: ignore[union-attr]
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: USD\nper_hour: {A100-80: 2}\n")
    spent = taken(["sft"], prices, **form)[1]
    assert spent is not None and spent.cost is not None and spent.gpu_hours is not None
    assert spent.cost.high == pytest.approx(2 * spent.gpu_hours.high, rel=0.01) and spent.currency == "USD"
    prices.write_text("per_hour: {A100-80: dear}\n")
    with pytest.raises(AlignError, match="not a mapping of accelerators to prices"):
        taken(["sft"], prices, **form)


Sizes = st.floats(0.2, 200)
Stages = st.lists(st.sampled_from(sorted(DATA_OF)), min_size=1, max_size=3)
Forms = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"params_b": st.none() | Sizes}),
        "hardware": st.fixed_dictionaries(
            {
                "gpus": st.none() | st.integers(0, 64),
                "gpu": st.sampled_from([None, "H100", "A100", "something"]),
                "memory_gb": st.none() | st.floats(1, 300),
            }
        ),
        "data": st.none() | st.just([]) | st.just([rows("sft_pairs", 10), rows("prompts", 7)]),
        "training": st.fixed_dictionaries({"tuning": st.sampled_from([None, "full", "lora", "qlora"])}),
    }
)


@given(Stages, Forms)
def test_any_project_gets_an_answer_and_the_same_one(stages: list[str], form: dict[str, Any]) -> None:
    found, spent, assumed = taken(stages, **form)
    assert (found, spent, assumed) == taken(stages, **form)
    assert len({each.fact for each in assumed}) == len(assumed)
    if found is not None and found.capacity_gb is not None and found.chosen is not None:
        assert found.chosen.verdict in ("fits", "tight") and found.chosen.strategy not in memory_plans.NOT_OURS


@given(Sizes, st.integers(1, 16), st.floats(8, 200), st.floats(1, 4))
def test_more_memory_never_stops_it_from_fitting(size: float, gpus: int, held: float, more: float) -> None:
    order = [None, "tight", "fits"]

    def verdict(each: float) -> int:
        found, _, _ = taken(["dpo"], model={"params_b": size}, hardware={"gpus": gpus, "memory_gb": each})
        assert found is not None
        return order.index(found.chosen.verdict if found.chosen else None)

    assert verdict(held) <= verdict(held * more)


@given(Sizes, st.integers(2, 64), st.integers(1, 20_000))
def test_splitting_more_never_takes_more(size: float, devices: int, tokens: int) -> None:
    shape, setting = typical_shape(size), Setting(devices=devices, tokens=tokens)
    totals = [
        sum(memory_formulas.training(shape, Setting(sharding=each, devices=devices, tokens=tokens)).values())
        for each in ("ddp", "zero1")
    ]
    assert totals[0] >= totals[1]
    one = sum(memory_formulas.states(shape, setting).values())
    assert one == pytest.approx(16 * shape.params)


def test_tight_lies_between() -> None:
    assert [memory_plans.verdict(total, 100) for total in (90, 90.1, 100, 100.1)] == [
        "fits",
        "tight",
        "tight",
        "does_not_fit",
    ]
