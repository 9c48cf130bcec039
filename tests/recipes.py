"""Recipes made small enough for a test, and what is expected of whatever they train."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align.core.config import run_file
from align.schemas.run import Run

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
ONLINE = [recipe for recipe in RECIPES if "rollout:" in recipe.read_text(encoding="utf-8")]
OFFLINE = [recipe for recipe in RECIPES if recipe not in ONLINE]


def shrunk(recipe: Path, *more: str) -> Run:
    """A recipe with few steps and a high rate."""
    laid_over = ["train.max_steps=24", "optimizer.learning_rate=5e-3", "data.dataset_num_proc=1"]
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    places = [("", written), *((f"stages.{stage['name']}.", stage) for stage in written.get("stages", ()))]
    for section, key, value in (
        ("data", "validation_fraction", 0.25),
        ("train", "batch_size", 8),
        ("validation", "eval_steps", 12),
        ("checkpoint", "save_steps", 12),
    ):
        laid_over += [f"{at}{section}.{key}={value}" for at, given in places if key in given.get(section, ())]
    for at, given in places:
        if "rollout" in given:
            laid_over += [f"{at}train.batch_size=32", f"{at}rollout.sampling.max_completion_length=4"]
    return run_file.load(recipe, [*laid_over, *more])


def held_out(stage: Path, metric: str) -> list[float]:
    """A held-out metric at every evaluation, the one before the first step first."""
    with open(stage / "metrics.csv", newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row[metric]]


def assert_improved(stage: Path, metric: str, least: float, metrics: Mapping[str, float]) -> None:
    """It changed by so much from before the first step to the end, and nothing that was measured is not a number."""
    before, *_, after = held_out(stage, metric)
    assert after == metrics[metric]
    assert (after - before) / least >= 1, f"{metric} was {before}, is {after}"
    assert all(map(math.isfinite, metrics.values()))


def assert_loads(export: Path, score: bool = False) -> None:
    """Transformers loads and runs it."""
    tokens = AutoTokenizer.from_pretrained(export)("the cat sat", return_tensors="pt")
    if score:
        scorer = AutoModelForSequenceClassification.from_pretrained(export)
        assert scorer.config.num_labels == 1 and scorer(**tokens).logits.shape == (1, 1)
    else:
        model = AutoModelForCausalLM.from_pretrained(export)
        assert torch.isfinite(model(**tokens).logits).all()
