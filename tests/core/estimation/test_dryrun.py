"""A dry run counts what real tensors take; the formulas agree with it; what is measured agrees with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from align.advisor.estimate import engine_memory
from align.advisor.estimate.model_shape import shape_of_directory
from align.core.algorithm.contract import Online
from align.core.data.step_plan import FORWARD, make_micro_batches
from align.core.engine.steps import MicroBatcher
from align.core.estimation.batches import Planned, measured, needs_of, planned
from align.core.estimation.calibrate import calibrate
from align.core.estimation.dry_run import count, dry_run
from align.core.estimation.memory_tracker import MemoryTracker
from align.core.estimation.resolved_stage import config_of, resolve_stage
from align.core.models.load_and_export import build_policy
from align.core.plugin_system.registry import registry
from align.core.training.reward_stage import configure
from align.core.util.detect_hardware import present
from align.schemas.engine import LOGITS, MICRO_TOKENS
from align.schemas.errors import AlignError
from align.schemas.run import Devices, Stage
from tests.core.runs import run_for, write_rows
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its activations to matter beside the vocabulary."""
    wide = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
    return save_tiny(tmp_path_factory.mktemp("small") / "model", **wide)


def staged(algorithm: str, model: Path, home: Path, /, **laid_over: Any) -> Stage:
    rows = write_rows(algorithm, home / "rows.jsonl")
    (stage,) = run_for(algorithm, model, rows, home / "run", **laid_over).stages
    return stage


def built(stage: Stage) -> Any:
    algorithm: Any = registry.build("algorithm", stage.algorithm)
    if isinstance(algorithm, Online):
        configure(algorithm, stage)
    return algorithm


def formulas(stage: Stage, algorithm: Any, plan: Planned) -> dict[str, float]:
    how = engine_memory.layout_of(stage, "cpu", 1)
    shape = shape_of_directory(Path(stage.model.path))
    phases = engine_memory.stage_memory(stage, needs_of(algorithm), shape, how, plan.batches)
    return {phase: sum(parts.values()) for phase, parts in phases.items()}


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
    "bf16-mixed": {"train": {"precision": "bf16-mixed"}},
    "bf16": {"model": {"dtype": "bfloat16"}},
    "lora": {"model": {"adapter": {"r": 4}}},
    "lora, bf16-mixed": {
        "model": {"dtype": "bfloat16", "adapter": {"r": 4}},
        "train": {"precision": "bf16-mixed"},
    },
}


@pytest.mark.parametrize(
    ("algorithm", "way"),
    [
        ("sft", "plain"),
        ("dpo", "plain"),
        ("grpo", "plain"),
        ("ppo", "plain"),
        ("ppo", "checkpointing"),
        ("grpo", "lora"),
    ],
)
def test_the_formulas_agree_within_a_tenth(algorithm: str, way: str, small: Path, tmp_path: Path) -> None:
    stage = staged(algorithm, small, tmp_path, **WAYS[way])
    method = built(stage)
    plan = planned(stage, method, "cpu", 1)
    counted, said = dry_run(stage, method, plan), formulas(stage, method, plan)
    assert set(counted.phases) == set(said)
    for phase, total in said.items():
        assert total == pytest.approx(counted.total(phase), rel=0.1), phase


@pytest.mark.parametrize("way", ["bf16-mixed", "bf16", "lora, bf16-mixed", "checkpointing"])
def test_so_they_do_in_other_types(way: str, small: Path, tmp_path: Path) -> None:
    stage = staged("sft", small, tmp_path, **WAYS[way])
    plan = planned(stage, built(stage), "cpu", 1)
    said = formulas(stage, built(stage), plan)
    assert said["training"] == pytest.approx(dry_run(stage, built(stage), plan).total("training"), rel=0.1)


@pytest.mark.parametrize("algorithm", ["kto", "reward_model", "online_dpo", "best_of_n"])
def test_every_other_kind_of_algorithm_can_be_run_dry(algorithm: str, small: Path, tmp_path: Path) -> None:
    more = {"train": {"batch_size": 16}} if algorithm == "best_of_n" else {}
    stage = staged(algorithm, small, tmp_path, **more)
    method = built(stage)
    plan = planned(stage, method, "cpu", 1)
    counted, said = dry_run(stage, method, plan), formulas(stage, method, plan)
    assert set(counted.phases) == set(said)
    for phase, total in said.items():
        assert total == pytest.approx(counted.total(phase), rel=0.1), phase


@pytest.mark.parametrize("way", ["plain", "checkpointing", "bf16-mixed"])
def test_tensors_without_numbers_take_what_real_ones_take(way: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same steps, once dry and once with real weights and arithmetic: the same peak."""
    stage = staged("sft", tiny_model_dir, tmp_path, **WAYS[way])
    method = built(stage)
    plan = planned(stage, method, "cpu", 1)
    dry = dry_run(stage, method, plan)
    policy, _ = build_policy(stage.model, "language", seed=0, dropout=True)
    policy.tail  # noqa: B018  # measured beforehand, as the engine has done by then
    like = dry_cutter(stage, method)
    real = count(stage, method, policy, None, like, plan, MemoryTracker())
    assert real.total("training") == pytest.approx(dry.total("training"), rel=0.002)
    assert real.phases["training"]["weights"] == dry.phases["training"]["weights"]


def dry_cutter(stage: Stage, algorithm: Any) -> MicroBatcher:
    limit = stage.train.micro_batch_tokens or MICRO_TOKENS["cpu"]
    return MicroBatcher(algorithm, stage.train, "padded", 0, limit, 0, 1, FORWARD["cpu"])


@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_real_steps_measured_agree(algorithm: str, small: Path, tmp_path: Path) -> None:
    stage = staged(algorithm, small, tmp_path, data={"validation_fraction": 0.0})
    seen = calibrate(stage, present(stage.devices))
    said = formulas(stage, built(stage), seen.planned)
    assert seen.seconds > 0
    assert seen.peaks["training"] == pytest.approx(said["training"], rel=0.1)
    if algorithm == "grpo":
        assert seen.peaks["generation"] == pytest.approx(said["generation"], rel=0.15)
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_dry_run_stays(tiny_model_dir: Path, tmp_path: Path) -> None:
    before = dict(LOGITS)
    stage = staged("sft", tiny_model_dir, tmp_path)
    plan = planned(stage, built(stage), "cuda", 1)
    on_gpu = dry_run(stage, built(stage), plan, "cuda")
    assert before == LOGITS
    assert on_gpu.total("training") > 0


def test_what_cannot_be_run_dry_says_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = staged("sft", tiny_model_dir, tmp_path, model={"adapter": {"quantize": "nf4"}})
    with pytest.raises(AlignError, match="cannot be run dry: its kernels want real weights"):
        dry_run(stage, built(stage), planned(stage, built(stage), "cpu", 1))


def test_a_tracker_counts_storages_once_and_while_they_live() -> None:
    tracker = MemoryTracker()
    with tracker:
        kept = torch.zeros(250)  # 1,000 bytes
        view = kept.view(10, 25)
        passing = kept + 1
        del passing
        other = view * 2
    assert (tracker.live, tracker.peak) == (2000, 2000)
    del kept, other
    assert tracker.live == 1000  # the view holds it
    del view
    assert tracker.live == 0


def test_a_tracker_knows_gradients() -> None:
    layer = torch.nn.Linear(10, 10, bias=False)
    tracker = MemoryTracker()
    tracker.enter(layer.parameters())
    tracker.watch_gradients(layer.parameters())
    with tracker:
        layer(torch.ones(1, 10)).sum().backward()
        assert tracker.gradients == 400
        layer(torch.ones(1, 10)).sum().backward()  # added to, not made anew
        assert tracker.gradients == 400
    layer.weight.grad = None
    assert tracker.gradients == 0


def test_dry_arithmetic_keeps_integers_and_makes_up_the_rest() -> None:
    dry = FakeTensorMode(allow_non_fake_inputs=True)
    with MemoryTracker(dry):
        mask = torch.tensor([True, False, True])
        big = torch.zeros(3)
        assert int(mask.sum()) == 2  # real
        assert big[mask].shape == (2,)
        assert float(big.sum()) == 1.0 and bool(torch.isfinite(big).all())  # nobody knows


def test_micro_batches_are_those_that_training_cuts(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = staged("dpo", tiny_model_dir, tmp_path)
    plan = planned(stage, built(stage), "cpu", 2)
    lengths = [example.lengths for example in plan.examples]
    (mine, _) = make_micro_batches(lengths, 2, 4096, 3, "padded")
    assert len(plan.batches.micros) == len(mine)
    assert [m.rows for m in plan.batches.micros] == [2 * len(micro) for micro in mine]
    assert [m.width for m in plan.batches.micros] == [max(max(lengths[i]) for i in micro) for micro in mine]
    assert plan.batches.measured and plan.batches.rows == 48 - 7


def test_data_that_are_not_here_are_as_long_as_may_be(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = staged("sft", tiny_model_dir, tmp_path, data={"train": [{"path": "nowhere/else"}], "max_length": 77})
    examples, why = measured(stage, built(stage))
    assert examples is None and why == "the data are not here"
    plan = planned(stage, built(stage), "cpu", 1)
    assert {micro.width for micro in plan.batches.micros} == {77} and not plan.batches.measured
    assert all(int(s.scored.sum()) == 76 for e in plan.examples for s in e.sequences)


def test_the_dearest_step_is_found(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = staged("sft", tiny_model_dir, tmp_path, train={"batch_size": 4, "micro_batch_size": 4})
    examples, _ = measured(stage, built(stage))
    assert examples is not None
    plan = planned(stage, built(stage), "cpu", 1)
    longest = int(np.max([examples[i].lengths for i in range(len(examples))]))
    assert max(micro.tokens for micro in plan.batches.micros) >= longest


def test_an_adapter_is_estimated_as_one_of_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    home = tmp_path / "adapter"
    home.mkdir()
    (home / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model_dir), "r": 5}))
    stage = staged("sft", home, tmp_path, data={"train": [{"path": "nowhere"}]})
    known = resolve_stage([stage], stage, "cpu", 1)
    assert known.directory == tiny_model_dir
    assert known.stage.model.adapter is not None and known.stage.model.adapter.r == 5


def test_a_model_that_cannot_be_had_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = staged("sft", tiny_model_dir, tmp_path)
    stage = stage.model_copy(update={"model": stage.model.model_copy(update={"path": "no/such-model"})})
    with pytest.raises(AlignError, match=r"neither a directory here nor a hub id whose config\.json can be had"):
        config_of(stage)


def test_this_machine() -> None:
    here = present(Devices(accelerator="cpu", count=3))
    assert (here.accelerator, here.world_size, here.name) == ("cpu", 3, "CPU") and here.memory > 1e9
    if not torch.cuda.is_available():
        with pytest.raises(AlignError, match="there is no GPU here"):
            present(Devices(accelerator="cuda"))
