"""Models that fsdp splits over real gloo processes: the same gradients under every setting, 1/N of the bytes each."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.core.config import run_file
from align.core.engine import checkpoint, sharded_checkpoint
from align.core.models import load_and_export
from align.core.models.load_and_export import (
    build_policy,
    export,
    export_by_tensor,
    export_from_state,
    load_tokenizer,
)
from align.core.training.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Model, Run
from tests.core.ranks import LAW, ONE_STEP, torchrun
from tests.core.runs import run_for, write_rows
from tests.tiny import save_tiny

RANKS = 2
CLIPPED = 0.01
"""``train.max_grad_norm`` of the runs on several ranks, far below every norm here."""

SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "zero3": {"type": "fsdp"},
    "zero2": {"type": "fsdp", "reshard_after_forward": False},
    "offload": {"type": "fsdp", "offload": True},
    "hybrid": {"type": "fsdp", "shard_size": 1},
}
PHASES: dict[str, dict[str, Any]] = {"train": {"max_steps": 5}, "checkpoint": {"save_steps": 100}}
"""A phase of four steps, and one step of the next. No checkpoint: saving one splits the weights again."""
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}

MEASURE = """
import json, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from align.core.config import run_file
from align.core.engine.module import AlignModule
from align.core.engine.processes import rank
from align.core.training.launch import train

step = AlignModule.optimizer_step


def here(tensors):
    tensors = list(tensors)
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local), sum(t.numel() * t.element_size() for t in tensors)


def measured(module, *args, **kwargs):
    step(module, *args, **kwargs)
    state = module.optimizers().optimizer.state
    found = {}
    for name, network in module.networks.items():
        learned = [p for p in network.parameters() if p.requires_grad]
        found[name] = here(network.parameters())
        found[name + " gradients"] = here([p.grad for p in learned])
        found[name + " moments"] = here([state[p][k] for p in learned for k in ("exp_avg", "exp_avg_sq")])
    values = getattr(module.reference, "values", None)
    if values is not None:
        found["reference"] = here(values.values())
        assert found["reference"][0] == module.reference.copied_bytes
    Path(sys.argv[2], f"{module.stage.name}-{rank()}.json").write_text(json.dumps(found))


AlignModule.optimizer_step = measured
train(run_file.load(sys.argv[1]), progress=False)
"""


def on_ranks(run: Run, file: Path, script: Path | None = None, *, ranks: int = RANKS, resume: bool = False) -> str:
    """Train a run under torchrun; with a script by that, which is given the run file and its directory.

    Returns the status and what it printed; without a script it must succeed.
    """
    file.write_text(run_file.dump(run))
    own = ("-m", "align", "train", str(file), "--quiet", *["--resume"] * resume)
    if script is not None:
        own = (str(script), str(file), str(file.parent))
    done = torchrun(*own, tmp=file.parent, ranks=ranks, timeout=400)
    assert done.returncode == 0 or script is not None, done.stdout + done.stderr
    return f"{done.returncode}: {done.stdout}{done.stderr}"


def stages(model: Path, output: Path, chosen: dict[str, tuple[str, dict[str, dict[str, Any]]]]) -> Run:
    """A run with one stage for each entry: name -> (algorithm, sections)."""
    made = []
    for name, (algorithm, sections) in chosen.items():
        rows = write_rows(algorithm, output.parent / f"{algorithm}.jsonl")
        merged = {key: ONE_STEP.get(key, {}) | sections.get(key, {}) for key in ONE_STEP | sections}
        run = run_for(algorithm, model, rows, output, **merged)
        made.append(run.stages[0].model_copy(update={"name": name}))
    return run.model_copy(update={"stages": made})


def gradient(stage: Path) -> torch.Tensor:
    """AdamW's first moment after one step is (1 - beta1) times the gradient, after clipping."""
    (optimizer,) = checkpoint.load(stage / "checkpoints" / "step-00000001")["optimizer_states"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    return torch.cat([optimizer["state"][name]["exp_avg"].flatten() / 0.1 for name in names])


def fsdp(ranks: int, **settings: Any) -> dict[str, Any]:
    return {"devices": {"count": ranks, "strategy": {"type": "fsdp", **settings}}}


def logged_norms(stage: Path) -> list[float]:
    """Return the norm of each step."""
    with open(stage / "metrics.csv", newline="") as file:
        return [float(row["grad_norm"]) for row in csv.DictReader(file) if row["grad_norm"]]


def test_gradients_and_their_norm_are_those_of_one_process(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ddp and every setting of fsdp, full and LoRA: the norm over all ranks' parts, and what clipping leaves.

    The oracle is one process's gradient without clipping: its norm, and the gradient times limit / norm. A part that a
    rank leaves out of the norm makes it smaller, and the clipped gradient larger. The first step of a phase, whose
    scoring leaves weights gathered, has no gradient left of the step before it.
    """
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tunings: dict[str, dict[str, Any]] = {"full": {}, "lora": {"adapter": LORA}}
    alone = {kind: ("sft", {"model": model}) for kind, model in tunings.items()} | {"phases": ("grpo", PHASES)}
    train(stages(tiny_model_dir, tmp_path / "one", alone), progress=False)
    clipped, several = {"train": {"max_grad_norm": CLIPPED}}, dict[str, Any]()
    for name, choice in SETTINGS.items():
        devices = {"count": RANKS, "strategy": choice}
        for kind in ("full", "lora") if name in ("ddp", "zero3") else ("full",):
            several[f"{name}-{kind}"] = ("sft", clipped | {"devices": devices, "model": tunings[kind]})
    phases = {f"phases-{name}": ("grpo", PHASES | fsdp(RANKS, **SETTINGS[name])) for name in ("zero3",)}
    on_ranks(stages(tiny_model_dir, tmp_path / "two", several | phases), tmp_path / "two.yaml")
    expected = logged_norms(tmp_path / "one" / "phases")
    assert len(expected) == 5
    for name in phases:
        assert logged_norms(tmp_path / "two" / name) == pytest.approx(expected, rel=1e-6), name
    for name in several:
        whole = gradient(tmp_path / "one" / name.partition("-")[2])
        norm = float(whole.norm())
        assert norm > 10 * CLIPPED
        assert logged_norms(tmp_path / "two" / name) == pytest.approx([norm], rel=LAW), name
        found = gradient(tmp_path / "two" / name)
        assert (found - whole * (CLIPPED / (norm + 1e-6))).norm() < LAW * CLIPPED, name


def test_every_network_that_is_held_is_split(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Policy, adapter and its frozen base, critic, reward model, reference copy: each byte is on one rank alone."""
    split = fsdp(RANKS)
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        "lora": ("sft", split | {"model": {"adapter": LORA}}),
        "reward": ("reward_model", split),
        "snapshot": ("dpo", split | {"reference": {"type": "moving-average"}}),
        "critic": ("ppo", split),
    }
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    said = on_ranks(stages(tiny_model_dir, tmp_path / "run", chosen), tmp_path / "run.yaml", script)
    assert said.startswith("0:"), said
    for name in chosen:
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        assert len(ranks[0]) >= {"lora": 3, "reward": 3, "snapshot": 4, "critic": 7}[name]
        for part, (_, whole) in ranks[0].items():
            local = [held[part][0] for held in ranks]
            assert sum(local) == whole, (name, part)
            assert max(local) < 0.55 * whole, (name, part)


KILLED = """
import os, signal, sys
from align.core.config import run_file
from align.core.engine import sharded_checkpoint
from align.core.engine.processes import rank
from align.core.training.launch import train

write = sharded_checkpoint.write_own


def killed(tensors, path):
    written = write(tensors, path)
    if rank() == 1 and path.parent.name.endswith("step-00000004"):
        os.truncate(path, written[0]["size"] // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return written


sharded_checkpoint.write_own = killed
train(run_file.load(sys.argv[1]), progress=False)
"""
FOUR_STEPS: dict[str, Any] = {"train": {"max_steps": 4}, "checkpoint": {"save_steps": 2}, "model": {"dtype": "float32"}}


def same(one: Any, two: Any) -> bool:
    """Equal to the bit, however deep."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    return len(one) == len(two) and all(map(same, one, two)) if isinstance(one, list | tuple) else bool(one == two)


def test_ranks_write_their_own_parts_and_lose_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Rank 1 is killed while it writes step 4; three ranks go on from step 2, and export to the byte what a whole has.

    The parts of step 2, joined, are bit by bit the whole checkpoint of another stage with the same steps; a flipped bit
    in one rank's file is named, and the checkpoint before it is taken.
    """
    chosen = {
        "whole": ("sft", FOUR_STEPS | fsdp(2, checkpoints="whole")),
        "parts": ("sft", FOUR_STEPS | fsdp(2, checkpoints="sharded")),
    }
    output, script = tmp_path / "run", tmp_path / "killed.py"
    script.write_text(KILLED)
    said = on_ranks(stages(tiny_model_dir, output, chosen), tmp_path / "run.yaml", script)
    assert "Signal 9 (SIGKILL)" in said
    root = output / "parts" / "checkpoints"
    start, damaged = checkpoint.latest_valid(root)
    assert start == root / "step-00000002" and damaged == []
    files = {path.name for path in start.iterdir()}
    names = {f"rank-0000{rank}-of-00002.safetensors" for rank in range(2)}
    assert files == {"state.pt", "MANIFEST.json"} | names
    parts, whole = (checkpoint.load(output / stage / "checkpoints" / start.name) for stage in ("parts", "whole"))
    for section in ("state_dict", "optimizer_states"):
        assert same(parts[section], whole[section]), section
    sizes = [(start / name).stat().st_size for name in names]
    assert max(sizes) < 0.55 * sum(sizes) and (start / "state.pt").stat().st_size < 0.2 * sum(sizes)

    chosen["parts"] = ("sft", FOUR_STEPS | fsdp(3, checkpoints="sharded"))
    chosen["whole"] = ("sft", FOUR_STEPS | fsdp(3, checkpoints="whole"))  # it is done
    run = stages(tiny_model_dir, output, chosen)
    on_ranks(run, tmp_path / "run.yaml", ranks=3, resume=True)
    last = root / "step-00000004"
    assert len(list(last.glob("rank-*-of-00003.safetensors"))) == 3
    model = {stage: load_file(output / stage / "export" / "model.safetensors") for stage in ("parts", "whole")}
    for name, weight in model["whole"].items():
        torch.testing.assert_close(model["parts"][name], weight, rtol=1e-4, atol=1e-6)
    weights = checkpoint.load(last)["state_dict"]
    policy = {name.removeprefix("policy."): value for name, value in weights.items()}
    export_from_state(policy, run.stages[0].model, "language", tmp_path / "export")
    assert contents(tmp_path / "export") == contents(output / "parts" / "export")

    damaged_file = last / "rank-00002-of-00003.safetensors"
    held = bytearray(damaged_file.read_bytes())
    held[-5] ^= 4
    damaged_file.write_bytes(held)
    start, damaged = checkpoint.latest_valid(root)
    assert start == root / "step-00000002"
    assert damaged == [f"checkpoint {last.name} is damaged: {damaged_file.name} differs from its sha256"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("int8"), AlignError("refused")])
def test_what_one_rank_raises_while_it_saves_ends_all(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that raised by itself would leave the others waiting for its result. A bug keeps its own traceback."""
    gathered: list[Any] = []

    def rank_1(value: Any) -> list[Any]:
        gathered[:] = [(None, ()), value]
        return gathered

    def fail() -> None:
        raise error

    monkeypatch.setattr(checkpoint, "all_gather_objects", rank_1)
    expected = KeyError if isinstance(error, KeyError) else AlignError
    with pytest.raises(expected):
        checkpoint._on_all(fail, tmp_path)
    monkeypatch.setattr(checkpoint, "all_gather_objects", lambda _: gathered)
    with pytest.raises(AlignError, match=r"int8|refused|no room is left"):  # rank 0, which did its part
        checkpoint._on_all(lambda: None, tmp_path)


def test_a_type_that_ranks_do_not_write_is_refused_by_name() -> None:
    with pytest.raises(AlignError, match=r"the tensor a/b is torch.int8(?s:.*)checkpoints: whole"):
        sharded_checkpoint._write_safetensors({"a/b": torch.zeros(2, dtype=torch.int8)}, io.BytesIO())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tied", [False, True])
def test_an_export_by_tensor_is_the_export(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files, of which one is in memory at a time; tensors that were not trained come from the model."""
    monkeypatch.setattr(load_and_export, "SHARD", "50KB")
    settings = Model(path=str(save_tiny(tmp_path / "model", tie_word_embeddings=tied)))
    policy, _ = build_policy(settings, "language", seed=0, dropout=True)
    learned = {name: value + 1 for name, value in policy.state_dict().items() if "layers.1" in name or "embed" in name}
    held = dict[str, int]()

    def read(name: str, value: torch.Tensor) -> torch.Tensor:
        held[name] = held.get(name, 0) + 1
        return value

    trained = {name.removeprefix("model."): partial(read, name, value) for name, value in learned.items()}
    assert export_by_tensor(trained, settings, "language", tmp_path / "parts")
    assert set(held.values()) == {1} and len(held) >= len(learned) - 1
    policy.load_state_dict(learned, strict=False)
    export(policy, load_tokenizer(settings), tmp_path / "expected")
    assert contents(tmp_path / "parts") == contents(tmp_path / "expected")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2


def test_an_export_by_tensor_refuses_numbers_that_are_not_finite(tiny_model_dir: Path, tmp_path: Path) -> None:
    name = "model.norm.weight"
    trained = {name: lambda: torch.full((load_file(tiny_model_dir / "model.safetensors")[name].shape), torch.nan)}
    with pytest.raises(AlignError, match="holds NaN or infinity; nothing was exported"):
        export_by_tensor(trained, Model(path=str(tiny_model_dir)), "language", tmp_path / "export")
    assert not (tmp_path / "export").exists()
