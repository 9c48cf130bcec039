"""The engine's own memory, by hand for a model small enough to count; its verdicts, its knobs, its laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.estimate import activations, engine_memory, training_cost
from align.advisor.estimate.engine_memory import MemoryLayout
from align.advisor.estimate.model_shape import ModelShape, typical_shape
from align.advisor.estimate.remedies import EstimateRequest, strategy_of
from align.advisor.estimate.show_estimate import blocks
from align.advisor.estimate.stage_estimate import StageEstimate, estimate_stage, load_of
from align.advisor.estimate.training_cost import Load
from align.schemas import gpus
from align.schemas.engine import Batches, Micro, Needs
from align.schemas.run import Stage
from align.schemas.text import format_bytes

SMALL = ModelShape(2, 8, 16, 100, 2, 1, 4, tied=False)
"""a layer: 2 * 8 * (2 + 1) * 4 + 3 * 8 * 16 + 2 * 8 = 592; P = 2 * 592 + 2 * 800 + 8 = 2792."""
WHOLE = MemoryLayout(activations.types("float32", "32-true"), 0, None, 1, False, False, "cpu")


def stage(algorithm: str = "sft", **sections: object) -> Stage:
    values: dict[str, object] = {
        "name": "only",
        "model": {"path": "m"},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "algorithm": {"type": algorithm},
    }
    return Stage.model_validate({**values, **sections})


def test_parameters_by_hand() -> None:
    assert SMALL.params == 2792
    assert engine_memory.parameters(SMALL, language=False) == 2792 - 800 + 8


def test_what_a_token_keeps_by_hand() -> None:
    """Two norms (input and normed, 8 each) and their outputs; q, k, v, the output, a float for each head; 4 f."""
    floats = 2 * (8 + 8 + 8) + (8 + 4 + 4 + 8) + 2 + 4 * 16
    assert activations.layer(SMALL, WHOLE.kind, 0, Micro(1, 4, 4, padded=False)) == 4 * floats
    frozen = floats - 2 * 8 + 7 * 3  # norms that do not learn keep no normed state; seven adapters of rank 3
    assert activations.layer(SMALL, WHOLE.kind, 3, Micro(1, 4, 4, padded=False)) == 4 * frozen


def test_a_step_of_several_micro_batches_by_hand() -> None:
    """Fullest when the second one's head has gone backward: weights, moments, activations, gradients and the head's
    new one, and the logits' slopes that forward kept."""
    micro = Micro(rows=2, width=4, scored=5, padded=False)
    phases = engine_memory.stage_memory(stage(), Needs(), SMALL, WHOLE, Batches((micro, micro)))
    token = 4 * (2 * (8 + 8 + 8) + (8 + 4 + 4 + 8) + 2 + 4 * 16)
    kept = 8 * (2 * token + 2 * 4 * 4 + 8 * 8) + 5 * 2 * 4 * 8
    assert phases["training"] == {
        "weights": 4 * 2792,
        "optimizer": 8 * 2792,
        "gradients": 4 * 2792 + 4 * 800,
        "activations": kept,
        "logits": 4 * 5 * 100,
    }


def test_logits_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary 100: of 9 tokens 4 are kept, the others come 3 at a time, and 2 to a tile."""
    monkeypatch.setitem(engine_memory.KEPT, "cpu", 4 * 4 * 100 + 99)
    monkeypatch.setitem(engine_memory.LOGITS, "cpu", 3 * 100 + 99)
    monkeypatch.setitem(engine_memory.TILE, "cpu", 2 * 100 + 99)
    micro = Micro(1, 20, 9)
    assert engine_memory.kept_tokens(SMALL, WHOLE, micro) == 4
    assert engine_memory.logits(SMALL, WHOLE, micro) == 4 * 100 * (4 + 3 + 2)
    assert engine_memory.logits(SMALL, WHOLE, micro, trains=False) == 4 * 100 * 3
    assert engine_memory.logits_back(SMALL, WHOLE, micro) == 4 * 100 * (4 + 3)
    few = Micro(1, 20, 3)
    assert engine_memory.logits(SMALL, WHOLE, few) == 4 * 100 * (3 + 2)
    assert engine_memory.logits_back(SMALL, WHOLE, few) == 4 * 100 * 3
    for frozen in (replace(WHOLE, rank=8), replace(WHOLE, checkpointing=True)):
        assert engine_memory.kept_tokens(SMALL, frozen, micro) == 0
        assert engine_memory.logits(SMALL, frozen, micro) == 4 * 100 * (3 + 2)
    half = replace(WHOLE, kind=activations.types("float32", "bf16-mixed"))
    assert engine_memory.kept_tokens(SMALL, half, micro) == 8
    cast = 2 * 800
    assert engine_memory.logits(SMALL, half, micro) == 2 * 100 * (8 + 1) + 8 * 100 * 2 + cast
    assert engine_memory.logits_back(SMALL, half, micro) == 2 * 100 * (8 + 1) + 2 * 800 + cast


def test_a_reference_costs_a_copy_only_where_nothing_else_serves() -> None:
    def reference(needs: Needs, **model: object) -> float:
        asked = stage(model={"path": "m", **model})
        how = replace(WHOLE, rank=4 if model else 0)
        return engine_memory.networks(asked, needs, SMALL, how).get("reference", 0.0)

    assert reference(Needs(reference=True, ahead=True)) == 0  # computed once, before training
    assert reference(Needs(reference=True, ahead=False)) == 4 * 2792
    assert reference(Needs(reference=True, ahead=False), adapter={"r": 4}) == 0  # the adapter switched off


def test_a_critic_is_a_second_model_with_a_head_of_one_row() -> None:
    alone = engine_memory.networks(stage(), Needs(), SMALL, WHOLE)
    both = engine_memory.networks(stage(), Needs(critic=True), SMALL, WHOLE)
    assert both["critic"] == 4 * 2000
    assert both["optimizer"] - alone["optimizer"] == 8 * 2000


def test_fsdp_splits_what_ddp_repeats() -> None:
    micro = Batches((Micro(1, 2, 1),) * 2)
    ddp = replace(WHOLE, devices=4, accelerator="cuda")
    parts = engine_memory.stage_memory(stage(), Needs(), SMALL, ddp, micro)["training"]
    split = engine_memory.stage_memory(stage(), Needs(), SMALL, replace(ddp, split=True), micro)["training"]
    assert split["weights"] == parts["weights"] / 4 and split["optimizer"] == parts["optimizer"] / 4
    assert split["gathered"] == 4 * (2 * 592 + 2 * 800)
    one = engine_memory.stage_memory(stage(), Needs(), SMALL, replace(ddp, devices=1), micro)["training"]
    assert parts["gradients"] - one["gradients"] == 4 * 2792  # buckets beside them


def test_generation_holds_the_cache_and_the_gradients_of_the_step_before() -> None:
    batches = Batches((Micro(1, 8, 4),), answers=300, prompts=100, prompt=10, answer=30)
    parts = engine_memory.stage_memory(stage("grpo"), Needs(online=True), SMALL, WHOLE, batches)["generation"]
    assert parts["kv_cache"] == 2 * 2 * 1 * 4 * 4 * 300 * 40
    assert parts["gradients"] == 4 * 2792
    assert "activations" in parts


Dtypes = st.sampled_from([("float32", "32-true"), ("float32", "bf16-mixed"), ("bfloat16", "bf16-true")])
Hows = st.builds(
    MemoryLayout,
    Dtypes.map(lambda pair: activations.types(*pair)),
    st.sampled_from([0, 8, 64]),
    st.none(),
    st.sampled_from([1, 2, 8]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["cpu", "cuda"]),
)
Needed = st.builds(Needs, reference=st.booleans(), ahead=st.booleans(), online=st.just(True), critic=st.booleans())


def total(how: MemoryLayout, needs: Needs, batches: Batches, shape: ModelShape = SMALL) -> float:
    phases = engine_memory.stage_memory(stage("grpo"), needs, shape, how, batches)
    return max(sum(parts.values()) for parts in phases.values())


@given(Hows, Needed, st.integers(1, 64), st.integers(1, 512), st.integers(1, 512))
def test_more_to_do_never_takes_less(how: MemoryLayout, needs: Needs, rows: int, width: int, answer: int) -> None:
    def batches(factor: int) -> Batches:
        micros = (Micro(rows * factor, width, rows * factor * width),) * 2
        return Batches(micros, answers=rows * factor, prompts=rows, prompt=width, answer=answer)

    assert total(how, needs, batches(1)) <= total(how, needs, batches(2))
    deeper = replace(SMALL, layers=4)
    assert total(how, needs, batches(1)) < total(how, needs, batches(1), deeper)


@given(Hows, Needed, st.integers(1, 32), st.integers(16, 512))
def test_checkpointing_never_takes_more_than_a_layer_beyond(
    how: MemoryLayout, needs: Needs, rows: int, width: int
) -> None:
    batches = Batches((Micro(rows, width, rows * width),) * 2, answers=1, prompts=1, prompt=1, answer=1)
    deep = replace(SMALL, layers=12)
    plain, frugal = (total(replace(how, checkpointing=on), needs, batches, deep) for on in (False, True))
    assert frugal <= plain


def asked(device: gpus.Device, devices: int = 1, shape: ModelShape | None = None, **model: object) -> EstimateRequest:
    batches = Batches((Micro(8, 2048, 8 * 2047),) * 2, measured=True, rows=10_000, tokens=5_000_000, steps=625)
    mixed = stage(model={"path": "m", **model}, train={"precision": "bf16-mixed"})
    return EstimateRequest(mixed, Needs(), shape or typical_shape(8), batches, device, devices, "cuda")


@pytest.mark.parametrize(
    ("name", "devices", "model", "verdict"),
    [
        ("RTX 4090", 1, {}, "does_not_fit"),
        ("H100", 1, {}, "does_not_fit"),  # 16 bytes for each of 8B
        ("H100", 8, {}, "does_not_fit"),  # 16,384 tokens of 32 layers
        ("H100", 8, {"gradient_checkpointing": True}, "fits"),
        ("RTX 4090", 1, {"dtype": "bfloat16", "adapter": {"r": 16, "quantize": "nf4"}}, "does_not_fit"),
        ("A100-40", 1, {"dtype": "bfloat16", "adapter": {"r": 16}, "gradient_checkpointing": True}, "fits"),
    ],
)
def test_an_8b_model(name: str, devices: int, model: dict[str, object], verdict: str) -> None:
    assert estimate_stage(asked(gpus.devices()[name], devices, **model)).fit.verdict == verdict


@pytest.mark.parametrize("device", gpus.devices().values(), ids=lambda device: device.name)
def test_every_gpu_can_be_estimated_or_the_missing_figure_is_named(device: gpus.Device) -> None:
    found = estimate_stage(asked(device))
    assert found.capacity == device.memory and found.phases["training"]
    assert found.work is not None and found.work.flops is not None
    text = shown(found, False)
    if device.peak is None:
        assert found.work.gpu_hours is None and f"the peak in TFLOP/s of {device.name} is not known" in text
        assert "--calibrate" in text
    else:
        assert found.work.gpu_hours is not None and not found.unknown and "GPU-hours" in text


def test_bandwidth_is_missed_only_where_answers_are_sampled() -> None:
    shape, device = typical_shape(1), replace(gpus.devices()["H100"], bandwidth=None)
    assert training_cost.lacking(device, Load(1e6)) == ""
    assert training_cost.lacking(device, Load(1e6, made=1e5)) == "memory bandwidth in TB/s"
    assert training_cost.estimate(shape, Load(1e6, made=1e5), "full", device, 1).gpu_hours is None
    assert training_cost.estimate(shape, Load(1e6), "full", device, 1).gpu_hours is not None


def test_auto_takes_ddp_where_a_replica_fits() -> None:
    small, large = typical_shape(0.5), typical_shape(8)
    assert strategy_of(asked(gpus.devices()["H100"], 1, small)) == "single"
    assert strategy_of(asked(gpus.devices()["H100"], 8, small)) == "ddp"
    assert strategy_of(asked(gpus.devices()["H100"], 8, large)) == "fsdp"


def test_knobs_add_up_until_it_fits() -> None:
    found = estimate_stage(asked(gpus.devices()["A100-40"]))
    assert found.fit.verdict == "does_not_fit" and not found.fits
    totals = [found.fit.total_gb, *(fit.total_gb for _, fit in found.remedies)]
    assert totals == sorted(totals, reverse=True)
    assert found.remedies[-1][1].verdict == "fits"
    assert [name for name, _ in found.remedies][:2] == ["train.micro_batch_size=1", "model.gradient_checkpointing=true"]
    assert all(fit.verdict != "fits" for _, fit in found.remedies[:-1])


def test_what_fits_needs_no_knob() -> None:
    assert estimate_stage(asked(gpus.devices()["H200"], 8, gradient_checkpointing=True)).remedies == []


def test_work_by_hand() -> None:
    """625 steps of 16 rows are one pass: 5M tokens, 6 P D with P = 8.03B, at 35 to 45% of eight times 989 TFLOP/s."""
    load = load_of(asked(gpus.devices()["H100"], 8))
    assert load is not None and load.learned == 625 * 16 * 500
    spent = estimate_stage(asked(gpus.devices()["H100"], 8), {"H100": 2.0}, "EUR").work
    assert spent is not None and spent.flops is not None and spent.wall_hours is not None and spent.cost is not None
    flops = 6 * 8_030_261_248 * 5_000_000
    assert spent.flops.high == pytest.approx(flops, rel=0.01)
    assert spent.wall_hours.low == pytest.approx(flops / (8 * 989e12 * 0.45) / 3600, rel=0.01)
    assert spent.cost.high == pytest.approx(2.0 * flops / (989e12 * 0.35) / 3600, abs=0.02)


@given(st.floats(1, 400), st.floats(1, 10))
def test_more_memory_never_stops_it_from_fitting(memory: float, more: float) -> None:
    order = ["does_not_fit", "tight", "fits"]

    def verdict(bytes_: float) -> int:
        return order.index(estimate_stage(asked(gpus.Device("some", bytes_ * 1e9))).fit.verdict)

    assert verdict(memory) <= verdict(memory * more)


def shown(found: StageEstimate, colour: bool) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, force_terminal=colour, file=open("/dev/null", "w"))  # noqa: SIM115
    for block in blocks(found, colour):
        console.print(block)
    return console.export_text()


@pytest.mark.parametrize("colour", [False, True])
def test_it_can_be_read_at_a_glance(colour: bool) -> None:
    text = shown(estimate_stage(asked(gpus.devices()["A100-40"])), colour)
    for words in (
        "does not fit",
        "too much",
        "training",
        "optimizer",
        "What would help",
        "model.adapter.r=16",
        "GPU-hours",
    ):
        assert words in text


def test_sizes_are_said_as_people_do() -> None:
    assert [format_bytes(x) for x in (0, 999, 1500, 2.5e6, 17.34e9, 1234e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "17.3 GB",
        "1,234 GB",
    ]
