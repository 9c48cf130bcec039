"""docs/algorithms.md names what there is, and says of it what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from align.core.algorithm.contract import Algorithm
from align.core.plugin_system.registry import registry
from align.plugins.algorithms.dpo import LOSSES, Divergence

DOCS = (Path(__file__).parents[2] / "docs/algorithms.md").read_text(encoding="utf-8")
LEARNING = ("sft", "pretrain", "reward_model", "dpo", "simpo", "cpo", "orpo", "kto")
LEARNING += ("rloo", "reinforce", "grpo", "ppo", "online_dpo")
OURS = (*LEARNING, "best_of_n")


def row(name: str, after: str = "") -> list[str]:
    """The cells of the first table row after some words that begins with a name."""
    found = re.search(rf"^\| `{name}` \|(.*)\|$", DOCS[DOCS.index(after) :], re.MULTILINE)
    assert found, f"docs/algorithms.md has no row for {name}"
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", found[1])]


@pytest.mark.parametrize("name", OURS)
def test_every_algorithm_with_its_paper_and_learning_rate(name: str) -> None:
    algorithm = registry.get("algorithm", name)
    assert issubclass(algorithm, Algorithm)
    cells = row(name)
    assert algorithm.paper in "".join(cells[1:3])
    assert cells[-1] == "none" if name == "best_of_n" else float(cells[-1].split(",")[0]) == algorithm.learning_rate


def test_every_dpo_loss_with_what_it_reads() -> None:
    for name, loss in LOSSES.items():
        told = {word for word in row(name, "## The DPO family")[2].split(", ") if word != "none"}
        assert told == loss.settings, name
    for name in get_args(Divergence):
        assert row(name)


@pytest.mark.parametrize("name", OURS)
def test_every_setting_says_where_its_default_is_from(name: str) -> None:
    """A paper's number, an author's or TRL's word; choices name the loss's paper."""
    config = registry.get("algorithm", name).Config
    for setting, field in config.model_fields.items():
        assert re.search(r"\d{4}\.\d{5}|TRL|the authors|^λ_U", field.description or ""), setting


def test_the_class_says_where_its_learning_rate_is_from() -> None:
    for name in LEARNING:
        source = inspect.getsource(registry.get("algorithm", name))
        assert re.search(r'learning_rate = \S+\n    """.*(TRL|Llama|authors|paper)', source), name
