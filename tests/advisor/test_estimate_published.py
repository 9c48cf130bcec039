"""The general formulas against figures that others published (research: advisor.md 4.5, 4.6), checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.advisor.estimate import memory_formulas, training_cost
from align.advisor.estimate.memory_formulas import Setting, Sharding, Tuning
from align.advisor.estimate.model_shape import ModelShape
from align.advisor.estimate.plan_fit import plan_fit
from align.advisor.estimate.training_cost import Load
from align.advisor.project_facts import Facts
from align.advisor.thresholds import shipped
from align.schemas import gpus
from align.schemas.advice import PlanStep
from align.schemas.project import Project

LLAMA2_7B = ModelShape(32, 4096, 11_008, 32_000, 32, 32, 128, tied=False)
LLAMA3_8B = ModelShape(32, 4096, 14_336, 128_256, 32, 8, 128, tied=False)
LLAMA3_70B = ModelShape(80, 8192, 28_672, 128_256, 64, 8, 128, tied=False)
QWEN25_7B = ModelShape(28, 3584, 18_944, 152_064, 28, 4, 128, tied=False, biases=4608)
GIB = 2**30


def total(shape: ModelShape, setting: Setting) -> float:
    return sum(memory_formulas.training(shape, setting).values()) / 1e9


def test_parameters_are_those_that_the_models_have() -> None:
    assert LLAMA2_7B.params == 6_738_415_616
    assert LLAMA3_8B.params == 8_030_261_248
    assert LLAMA3_70B.params == 70_553_706_496
    assert QWEN25_7B.params == 7_615_616_512
    assert LLAMA2_7B.lora(8) == 19_988_480


@pytest.mark.parametrize(
    ("sharding", "published"),
    [("zero2", 15.93), ("zero3", 6.10), ("zero2_offload", 5.31), ("zero3_offload", 0.79)],
)
def test_deepspeeds_own_example(sharding: Sharding, published: float) -> None:
    """memory.rst: 2,851M parameters, the largest layer 32M, 8 GPUs."""
    parts = memory_formulas.sharded(2_851e6, 32e6, 8, sharding, Setting())
    assert sum(parts.values()) / GIB == pytest.approx(published, abs=0.015)


def test_zeros_own_table() -> None:
    """1910.02054, Figure 1: 7.5B parameters on 64 GPUs take 120, 31.4, 16.6 and 1.9 GB (without gathered layers)."""
    plain = Setting()
    found = {s: sum(memory_formulas.sharded(7.5e9, 0, 64, s, plain).values()) / 1e9 for s in ("ddp", "zero1", "fsdp")}
    assert found["ddp"] == pytest.approx(120)
    assert found["zero1"] == pytest.approx(31.4, abs=0.05)
    assert found["fsdp"] == pytest.approx(1.9, abs=0.05)


OLD = Setting(logits=10, rank=8)
"""A trainer that makes whole logits."""


@pytest.mark.parametrize(
    ("tuning", "batch", "length", "published", "band"),
    [
        ("lora", 4, 1024, 18, 0.03),
        ("qlora", 4, 1024, 9, 0.11),
        ("qlora", 1, 1024, 6, 0.11),
        ("qlora", 1, 4096, 9, 0.11),
        ("qlora", 1, 16_384, 19, 0.11),
        ("qlora", 1, 32_768, 32, 0.11),
    ],
)
def test_llama_factorys_measurements_of_llama_2_7b(
    tuning: Tuning, batch: int, length: int, published: float, band: float
) -> None:
    found = total(LLAMA2_7B, replace(OLD, tuning=tuning, tokens=batch * length))
    assert found == pytest.approx(published, rel=band)


@pytest.mark.parametrize(("weight", "optimizer", "published"), [(2, 12, 120), (2, 4, 60)])
def test_llama_factorys_table_of_full_tuning(weight: float, optimizer: float, published: float) -> None:
    """120 GB mixed and 60 GB in pure bf16, round figures: the formula may be up to 9% below."""
    found = total(LLAMA2_7B, replace(OLD, tokens=1024, weight=weight, optimizer=optimizer))
    assert 0.91 * published < found <= published


@pytest.mark.parametrize(
    ("tuning", "shape", "published", "band"),
    [
        ("qlora", LLAMA3_8B, 6, 0.3),
        ("qlora", LLAMA3_70B, 41, 0.1),
        ("lora", LLAMA3_8B, 22, 0.2),
        ("lora", LLAMA3_70B, 164, 0.12),
    ],
)
def test_unsloths_minima(tuning: Tuning, shape: ModelShape, published: float, band: float) -> None:
    """No common yardstick (neither length nor batch are told), hence the wide bands of the research."""
    parts = memory_formulas.training(shape, Setting(tuning=tuning, tokens=512))
    assert (sum(parts.values()) - parts["logits"]) / 1e9 == pytest.approx(published, rel=band)  # its kernels make none


def test_unsloths_grpo_figures() -> None:
    """8 answers of 20K (20,480) tokens: two copies of their logits in 16 bits, and the cache of one."""
    assert pytest.approx(78.3, abs=0.05) == 2 * 2 * 8 * 20_480 * 128_256 / GIB
    assert LLAMA3_8B.kv_cache() * 20_480 / GIB == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize(("shape", "kib"), [(LLAMA3_8B, 128), (LLAMA2_7B, 512), (QWEN25_7B, 56)])
def test_cache_of_a_token(shape: ModelShape, kib: int) -> None:
    assert shape.kv_cache() == kib * 1024


def test_dpo_with_lora_is_on_the_safe_side() -> None:
    """7B, 2,048 tokens, measured 19.1 GB (odyn-network/benchmark-finetune-dpo-v1); taken as one pair at a time."""
    assert 19.1 * 0.9 < total(LLAMA2_7B, Setting(tuning="lora", tokens=2 * 2048, logits=10)) < 24.4


def test_bloomberggpts_speed() -> None:
    """2303.17564: 50.6B, 569B tokens, 512 A100-40, 53 days, 102 TFLOP/s by their own count; with recomputation."""
    shape = ModelShape(70, 7680, 30_720, 131_072, 40, 40, 192, tied=True, gated=False)
    assert shape.params == pytest.approx(50.6e9, rel=0.01)
    flops = training_cost.training_flops(shape, Load(569e9), "full", checkpointing=True)
    rate = flops / (512 * 53 * 86_400)
    assert rate / 1e12 == pytest.approx(102, rel=0.05)
    low, high = training_cost.seconds(shape, Load(569e9), "full", True, gpus.devices()["A100-40"], 512)
    assert low / 512 / 86_400 < 53 < high / 512 / 86_400 * 1.25  # they reached 31%, just below the 35% reckoned with


def test_llama_factorys_speed_lies_within_the_range() -> None:
    """2,954 tokens a second of LoRA on 7B, one A100: 38% of the peak at 6 P D."""
    low, high = training_cost.seconds(LLAMA2_7B, Load(2_954), "lora", True, gpus.devices()["A100-80"], 1)
    assert low <= 1.01 and high >= 1.0


def fit(stage: str, params_b: float, gpus: int, memory_gb: float, tuning: Tuning) -> str:
    project = Project.model_validate(
        {
            "model": {"params_b": params_b},
            "hardware": {"gpus": gpus, "memory_gb": memory_gb},
            "training": {"tuning": tuning},
        }
    )
    found, _, _ = plan_fit(Facts(project), [PlanStep(stage=stage, why=[])], shipped())
    assert found is not None and found.asked is not None
    return found.asked.verdict


@pytest.mark.parametrize(
    ("stage", "params_b", "gpus", "memory_gb", "tuning"),
    [
        ("sft", 70, 16, 23, "full"),
        ("sft", 13, 2, 80, "full"),
        ("sft", 7, 1, 24, "full"),
        ("grpo", 7, 1, 24, "full"),
    ],
)
def test_what_does_not_fit(stage: str, params_b: float, gpus: int, memory_gb: float, tuning: Tuning) -> None:
    assert fit(stage, params_b, gpus, memory_gb, tuning) == "does_not_fit"


@pytest.mark.parametrize(
    ("stage", "params_b", "gpus", "memory_gb", "tuning"),
    [
        ("sft", 8, 1, 24, "qlora"),
        ("sft", 8, 1, 48, "lora"),
        ("sft", 8, 8, 80, "full"),
        ("sft", 70, 8, 80, "lora"),
        ("sft", 70, 1, 80, "qlora"),
    ],
)
def test_what_fits(stage: str, params_b: float, gpus: int, memory_gb: float, tuning: Tuning) -> None:
    assert fit(stage, params_b, gpus, memory_gb, tuning) == "fits"
