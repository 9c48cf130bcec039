"""What a resumed run learns from is what it began with, by content; how a path is spelt is free."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.core.training.run_directory import inputs, training_settings
from align.core.util import atomic_files
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows
from tests.tiny import save_tiny

SHORT: dict[str, Any] = {
    "data": {"validation_fraction": 0.0},
    "train": {"max_steps": 4, "batch_size": 4, "num_train_epochs": 1},
    "checkpoint": {"save_steps": 2},
}


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def interrupt(run: Run, stage: str = "only", after: int = 2) -> Path:
    """Train, then put the run back to where a kill after a step had left it; the stage's directory."""
    train(run, progress=False)
    place = Path(run.output) / stage
    (place / "done.json").unlink()
    shutil.rmtree(place / "export")
    for step in checkpoint.steps(place / "checkpoints"):
        if step > after:
            shutil.rmtree(checkpoint.at(place / "checkpoints", step))
    return place


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


REWARD = """\
from neighbour import WORTH

def long(completions, words=None, **_):
    return [WORTH * len(str(c)) for c in completions]
"""


def everything(tmp_path: Path) -> Run:
    """An online run with an adapter, a template, a reward with a neighbour and an argument that is a file, and gold."""
    model = save_tiny(tmp_path / "model")
    template = tmp_path / "chat.jinja"
    template.write_text((model / "chat_template.jinja").read_text())
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reward.py").write_text(REWARD)
    (tmp_path / "code" / "neighbour.py").write_text("WORTH = 1.0\n")
    (tmp_path / "code" / "unrelated.py").write_text("WORTH = 1.0\n")
    (tmp_path / "words.txt").write_text("blue\n")
    (tmp_path / "gold.py").write_text("def short(completions, **_):\n    return [-len(str(c)) for c in completions]\n")
    rows = write_rows("grpo", tmp_path / "rows.jsonl", 8)
    held_out = write_rows("grpo", tmp_path / "held_out.jsonl", 3, seed=5)
    settings = {"file": "code/reward.py", "function": "long", "settings": {"words": "words.txt"}}
    return run_for(
        "grpo",
        model,
        rows,
        tmp_path / "run",
        model={"adapter": {"r": 2}, "chat_template": "chat.jinja"},
        data={"validation_fraction": 0.0, "validation": [{"path": str(held_out)}]},
        rollout={
            "rewards": [{"type": "python", "settings": settings}],
            "gold": {"type": "python", "file": "gold.py", "function": "short"},
            "sampling": {"max_completion_length": 4},
        },
        train={"max_steps": 4, "batch_size": 8, "num_train_epochs": 1, "micro_batch_size": 8},
        checkpoint={"save_steps": 1, "save_total_limit": 9},
    )


def other_weights(root: Path) -> None:
    tensors = load_file(root / "model" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, root / "model" / "model.safetensors", metadata={"format": "pt"})


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "base under the adapter": ("model.path (model.safetensors)", other_weights),
    "a flipped bit of it": ("model.path (model.safetensors)", lambda root: flip(root / "model" / "model.safetensors")),
    "config": (
        "model.path (config.json)",
        lambda root: edit(root / "model" / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    ),
    "end tokens": (
        "model.path (generation_config.json)",
        lambda root: edit(root / "model" / "generation_config.json", '"eos_token_id": 3', '"eos_token_id": 2'),
    ),
    "tokenizer": (
        "model.path (tokenizer.json)",
        lambda root: edit(root / "model" / "tokenizer.json", '"special": true', '"special": false'),
    ),
    "template": ("model.chat_template", lambda root: edit(root / "chat.jinja", "assistant", "model")),
    "reward": ("rewards.0.file", lambda root: edit(root / "code" / "reward.py", "WORTH *", "2 * WORTH *")),
    "its neighbour": ("rewards.0.file (neighbour.py)", lambda root: edit(root / "code" / "neighbour.py", "1.0", "2.0")),
    "its argument": ("rewards.0.settings.words", lambda root: (root / "words.txt").write_text("red\n") and None),
    "gold": ("rollout.gold.file", lambda root: edit(root / "gold.py", "-len", "len")),
    "training rows": ("its data", lambda root: edit(root / "rows.jsonl", '"solution": "', '"solution": "x')),
    "held-out rows": ("its data", lambda root: edit(root / "held_out.jsonl", '"solution": "', '"solution": "x')),
}


def test_every_input_that_has_changed_is_named(tmp_path: Path) -> None:
    run = everything(tmp_path)
    interrupt(run, after=1)
    for path in (tmp_path / "code" / "unrelated.py", tmp_path / "model" / "README.md"):
        path.write_text("may change")
    kept = tmp_path / "kept"
    for name in ("model", "code", "run"):
        shutil.copytree(name, kept / name)
    singles = [path for path in tmp_path.iterdir() if path.is_file()]
    for path in singles:
        shutil.copy(path, kept)
    for what, (named, change) in CHANGES.items():
        change(tmp_path)
        with pytest.raises(AlignError) as caught:
            train(run, resume=True, progress=False)
        assert named in str(caught.value), what
        assert checkpoint.last_step(tmp_path / "run" / "only" / "checkpoints") == 1, what
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    assert train(run, resume=True, progress=False)


def test_all_that_importing_a_reward_runs_is_an_input(tmp_path: Path) -> None:
    """Packages on the way, relative imports at every level, and absolute ones from within a package."""
    files = {
        "reward.py": "import pack.sub.a\nfrom top import *\ndef f(completions): return [1.0] * len(completions)\n",
        "top.py": "",
        "pack/__init__.py": "from . import beside",
        "pack/beside.py": "import other",
        "pack/other.py": "not imported: an absolute name starts from the reward's directory",
        "other.py": "",
        "pack/sub/__init__.py": "",
        "pack/sub/a.py": "from ..up import X\nfrom .b import c\nimport json",
        "pack/up.py": "X = 1",
        "pack/sub/b/__init__.py": "c = 2",
        "unused.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    reward = {"type": "python", "file": "code/reward.py", "function": "f"}
    model, rows = save_tiny(tmp_path / "model"), write_rows("grpo", tmp_path / "rows.jsonl", 2)
    run = run_for("grpo", model, rows, tmp_path / "run", rollout={"rewards": [reward]})
    (found,) = (each.content() for each in inputs(run.stages[0]) if each.name == "rollout.rewards.0.file")
    assert set(found) == {"", *files} - {"reward.py", "pack/other.py", "unused.py"}


def spelt_otherwise(root: Path) -> dict[str, Any]:
    """The same inputs: relative, through a link, with ``./`` and ``..``, as a copy elsewhere."""
    os.symlink(root / "model", root / "linked")
    os.symlink(root / "rows.jsonl", root / "linked.jsonl")
    shutil.copytree(root / "code", root / "copied")
    return {"model": "linked", "rows": "./model/../linked.jsonl", "reward": str(root / "copied" / "reward.py")}


def test_spelling_and_speed_are_free(tmp_path: Path) -> None:
    run = everything(tmp_path)
    whole = run.model_copy(update={"output": str(tmp_path / "whole")})
    (expected,) = train(whole, progress=False)
    interrupt(run, after=1)
    spelt = spelt_otherwise(tmp_path)
    plain = run.model_dump()
    (stage,) = plain["stages"]
    stage["model"] |= {"path": spelt["model"], "gradient_checkpointing": True, "attn_implementation": "sdpa"}
    stage["data"]["train"][0]["path"] = spelt["rows"]
    stage["rollout"]["rewards"][0]["settings"]["file"] = spelt["reward"]
    stage["train"]["micro_batch_size"] = 4
    (result,) = train(Run.model_validate(plain), resume=True, progress=False)
    for name, value in load_file(expected.export / "model.safetensors").items():
        torch.testing.assert_close(value, load_file(result.export / "model.safetensors")[name], rtol=1e-4, atol=1e-5)


def test_a_reference_that_was_computed_before_binds_no_cut(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("dpo", tmp_path / "rows.jsonl")
    interrupt(run_for("dpo", tiny_model_dir, rows, tmp_path / "run", **SHORT))
    faster = run_for(
        "dpo", tiny_model_dir, Path("rows.jsonl"), tmp_path / "run", **SHORT, model={"attn_implementation": "eager"}
    )
    assert train(faster, resume=True, progress=False)


def test_a_stream_is_compared_by_its_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Rows that are still ahead of it, past the first window."""
    rows = write_rows("pretrain", tmp_path / "stream.jsonl")
    streamed = {**SHORT, "data": {"stream": True, "stream_window": 6, "validation_fraction": 0.0}}
    run = run_for("pretrain", tiny_model_dir, rows, tmp_path / "run", **streamed)
    interrupt(run)
    before = rows.read_bytes()
    rows.write_bytes(before[:-4] + b"x" + before[-3:])
    with pytest.raises(AlignError, match=r"data\.train\.0\.path"):
        train(run, resume=True, progress=False)
    rows.write_bytes(before)
    relative = run_for("pretrain", tiny_model_dir, Path("stream.jsonl"), tmp_path / "run", **streamed)
    assert train(relative, resume=True, progress=False)


def test_a_judge_is_compared_by_its_settings_and_its_principles(tmp_path: Path) -> None:
    principles = tmp_path / "principles.txt"
    principles.write_text("Be brief.")
    judge = {"type": "ai_feedback", "model": "judge", "url": "http://127.0.0.1:9/v1", "constitution": str(principles)}

    def learned(**changed: Any) -> dict[str, Any]:
        rollout = {"rewards": [judge | changed], "sampling": {"max_completion_length": 4}}
        return training_settings(run_for("rloo", tmp_path, tmp_path, tmp_path, rollout=rollout).stages[0])

    assert learned(constitution="./principles.txt") == learned() == learned(retries=9, concurrency=2)
    for changed in (
        {"temperature": 0.5},
        {"marks": [1, 5]},
        {"parameters": {"top_p": 0.5}},
        {"url": "http://[::1]/v1"},
    ):
        assert learned(**changed) != learned()


def pipeline(model: Path, rows: Path, output: Path) -> Run:
    def stage(name: str, path: Any) -> dict[str, Any]:
        return {**run_for("sft", model, rows, output, **SHORT).stages[0].model_dump(), "name": name, "model": path}

    stages = [stage("first", {"path": str(model)}), stage("second", {"path": "stage:first", "adapter": {"r": 2}})]
    return Run.model_validate({"output": str(output), "stages": stages})


@pytest.mark.parametrize("resumed", [False, True])
def test_a_flipped_bit_in_an_export_stops_the_stage_that_starts_from_it(
    resumed: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = pipeline(tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run")
    place = interrupt(run, "second")
    if not resumed:
        shutil.rmtree(place)
    export = tmp_path / "run" / "first" / "export"
    whole = {path: path.read_bytes() for path in export.iterdir()}
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        flip(export / name)
        with pytest.raises(AlignError, match=f"{name} differs from its sha256") as caught:
            train(run, resume=True, progress=False)
        assert not (place / "done.json").exists()
        if name != "model.safetensors":
            (export / name).write_bytes(whole[export / name])
    assert "done.json, and --resume exports it again" in str(caught.value)
    (tmp_path / "run" / "first" / "done.json").unlink()  # as it says
    assert train(run, resume=True, progress=False)
    assert whole == {path: path.read_bytes() for path in export.iterdir()}


def test_a_pipeline_that_was_moved_goes_on_inside_a_stage(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    whole = train(pipeline(tiny_model_dir, rows, tmp_path / "whole"), progress=False)
    interrupt(pipeline(tiny_model_dir, rows, tmp_path / "run"), "second")
    (tmp_path / "else where").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "else where" / "run")
    moved = train(pipeline(tiny_model_dir, rows, Path("else where/run")), resume=True, progress=False)
    for before, after in zip(whole, moved, strict=True):
        assert (before.export / "model.safetensors").read_bytes() == (after.export / "model.safetensors").read_bytes()


def test_a_finished_stage_is_held_against_its_inputs_only_where_they_lie_elsewhere(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Its rows and its base may go: they are not read again. Another base or other rows are another stage."""
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    train(run_for("sft", model, rows, tmp_path / "run", **SHORT), progress=False)
    other = write_rows("sft", tmp_path / "other.jsonl", seed=1)
    with pytest.raises(AlignError, match=r"other settings: data\.train\.0\.path"):
        train(run_for("sft", model, other, tmp_path / "run", **SHORT), progress=False)
    with pytest.raises(AlignError, match=r"other settings: model\.path \(model\.safetensors\)"):
        train(run_for("sft", save_tiny(tmp_path / "else", seed=1), rows, tmp_path / "run", **SHORT), progress=False)
    copied = Path(shutil.copy(rows, tmp_path / "copied.jsonl"))
    assert train(run_for("sft", tiny_model_dir, copied, tmp_path / "run", **SHORT), progress=False)
    shutil.rmtree(model)
    rows.unlink()
    for path in (rows, Path("rows.jsonl")):
        assert train(run_for("sft", model, path, tmp_path / "run", **SHORT), progress=False)


def test_a_run_of_an_older_align_is_refused_and_stays(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Format 1: manifests without a sum. It is neither taken for damaged nor written over."""
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run", **SHORT)
    train(run, progress=False)
    place = tmp_path / "run" / "only"
    for path in [*(place / "checkpoints").glob("*/MANIFEST.json"), place / "stage.json", place / "done.json"]:
        plain = json.loads(path.read_bytes())
        del plain[atomic_files.SUM]
        path.write_text(json.dumps(plain | ({"format": 1} if path.name == "MANIFEST.json" else {})))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(AlignError, match="saved by an older align"):
        train(run, resume=True, progress=False)
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
