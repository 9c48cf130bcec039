"""Every recipe is run as it stands, but for a tiny model, few steps, and a rate at which a tiny model learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.core.config import run_file
from align.core.data.mixture import load_records
from align.core.plugin_system.registry import registry
from align.core.training.launch import train
from align.schemas.run import Data
from tests.core.runs import write_rows
from tests.recipes import OFFLINE, RECIPES, assert_improved, assert_loads, shrunk

ROWS = {
    "data/chats.jsonl": "sft",
    "data/preferences.jsonl": "dpo",
    "data/thumbs.jsonl": "kto",
    "data/domain.jsonl": "pretrain",
    "data/general.jsonl": "pretrain",
    "data/domain-held-out.jsonl": "pretrain",
    "data/general-held-out.jsonl": "pretrain",
}
"""The files that recipes name, and the algorithm whose rows (tests/core/runs.py) are put there."""

IMPROVES = {
    "sft/sft": ("val/loss", -1.0),
    "sft_lora/sft": ("val/loss", -1.0),
    "pretrain/pretrain": ("val/domain/perplexity", -200.0),
    "reward_model/reward_model": ("val/margin", 0.3),
    "dpo/dpo": ("val/rewards/accuracies", 0.5),
    "dpo_mixture/dpo": ("val/loss", -1.0),
    "simpo/simpo": ("val/loss", -0.5),
    "orpo/orpo": ("val/loss", -1.0),
    "cpo/cpo": ("val/loss", -1.0),
    "kto/kto": ("val/rewards/margins", 0.2),
    "sft_dpo/sft": ("val/loss", -1.0),
    "sft_dpo/dpo": ("val/rewards/accuracies", 0.5),
}
"""For each stage a held-out metric, and by how much at least it changes from before the first step to the end."""

OF_A_RUN = {"run.yaml", "manifest.json"}
OF_A_STAGE = {"stage.json", "metrics.csv", "data_report.json", "done.json", "logs/rank-0.jsonl"} | {
    f"checkpoints/step-000000{step}/{name}" for step in (12, 24) for name in ("state.pt", "MANIFEST.json")
}
OF_A_MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
OF_AN_ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


@pytest.fixture
def home(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the models and data that recipes name, the models tiny."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for folder in ("Qwen", "data"):
        (tmp_path / folder).mkdir()
    for name in ("Qwen3-0.6B", "Qwen3-0.6B-Base"):
        (tmp_path / "Qwen" / name).symlink_to(tiny_model_dir)
    for seed, (name, kind) in enumerate(ROWS.items()):
        write_rows(kind, tmp_path / name, count=80, seed=seed)
    return tmp_path


def header(recipe: Path) -> list[str]:
    """The comment lines at the top."""
    return [line.removeprefix("#") for line in recipe.read_text(encoding="utf-8").split("\noutput:")[0].splitlines()]


def sample_rows(recipe: Path) -> Iterator[dict[str, Any]]:
    """The rows shown in the header: JSON objects, indented, some over two lines."""
    text = "".join(line for line in header(recipe) if line.startswith("   "))
    while text.strip():
        row, end = json.JSONDecoder().raw_decode(text.strip())
        yield row
        text = text.strip()[end:]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_headed_by_its_command_and_rows_it_learns_from(recipe: Path, tmp_path: Path) -> None:
    lines = header(recipe)
    assert lines[0].strip() == f"align train recipes/{recipe.name}" and lines[1] == ""
    stages = run_file.load(recipe).stages
    unused = list(sample_rows(recipe))
    assert unused
    for stage in stages:
        if stage.data.train[0].path.startswith("stage:"):
            continue
        assert all(source.path in "\n".join(lines) or "held-out" in source.path for source in stage.data.train)
        learns_from = registry.build("algorithm", stage.algorithm).learns_from
        for row in list(unused):
            (tmp_path / "row.jsonl").write_text(json.dumps(row))
            found = load_records(Data.model_validate({"train": str(tmp_path / "row.jsonl")}), learns_from, None, False)
            assert len(found.train) == 1
            unused.remove(row)
            if len(stages) > 1:
                break
    assert not unused


@pytest.mark.parametrize("recipe", OFFLINE, ids=lambda path: path.stem)
def test_a_recipe_runs_and_improves(recipe: Path, home: Path) -> None:
    run = shrunk(recipe)
    results = train(run, progress=False)

    expected, output = set(OF_A_RUN), home / run.output
    for stage, result in zip(run.stages, results, strict=True):
        score = stage.algorithm.type == "reward_model"
        exported = OF_A_MODEL | (OF_AN_ADAPTER if stage.model.adapter else set())
        exported |= set() if score else {"generation_config.json"}
        expected |= {f"{stage.name}/{name}" for name in OF_A_STAGE | {f"export/{name}" for name in exported}}

        metric, least = IMPROVES[f"{recipe.stem}/{stage.name}"]
        assert_improved(output / stage.name, metric, least, result.metrics)
        assert_loads(result.export, score)
    assert {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file() and p.name != ".lock"} == expected


def test_every_algorithm_has_a_recipe() -> None:
    used = {stage.algorithm.type for recipe in RECIPES for stage in run_file.load(recipe).stages}
    assert used == set(registry.names("algorithm"))
    assert {name.partition("/")[0] for name in IMPROVES} == {recipe.stem for recipe in OFFLINE}
