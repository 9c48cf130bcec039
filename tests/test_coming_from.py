"""docs/coming_from.md: every argument it names exists in the installed TRL, every key of ours in the schema."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from align.core.config.run_file import FIXES
from align.core.plugin_system import registry
from align.core.plugin_system.registry import model_at, unknown
from align.schemas.renamed import OTHER_KEYS
from align.schemas.run import Run, Stage

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text(encoding="utf-8")


def columns(heading: str) -> list[list[list[str]]]:
    """The names in backticks in each cell of each row of the table under a heading."""
    section = PAGE[PAGE.index(f"## {heading}") :].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| **")]
    return [[re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split(" | ")] for row in rows[1:]]


OURS = [row[1] for row in columns("TRL's arguments")] + [row[2] for row in columns("OpenRLHF's and veRL's")]
(PPO,) = re.findall(r"^What TRL had in `PPOConfig`.*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
OURS += [re.findall(r"`(algorithm\.\w+)`", PPO)]


@pytest.fixture(scope="module")
def arguments() -> set[str]:
    """The arguments of TRL's and transformers' configs."""
    import trl
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.online_dpo import OnlineDPOConfig

    configs: list[Any] = [
        getattr(trl, f"{name}Config") for name in ("SFT", "DPO", "KTO", "Reward", "GRPO", "RLOO", "Model")
    ]
    return {field.name for config in [*configs, CPOConfig, OnlineDPOConfig] for field in dataclasses.fields(config)}


def algorithm_settings() -> set[str]:
    found = (registry.config_of(registry.get("algorithm", name)) for name in registry.names("algorithm"))
    return {key for config in found for key in config.model_fields}


def test_every_argument_exists_in_trl(arguments: set[str]) -> None:
    named = [name for row in columns("TRL's arguments") for name in row[0]]
    assert len(named) > 80
    assert [name for name in named if name not in arguments] == []


@pytest.mark.parametrize("key", sorted({key for row in OURS for key in row}))
def test_every_key_exists_in_align(key: str) -> None:
    section, _, name = key.rpartition(".")
    if section == "algorithm":
        assert name in algorithm_settings()
        return
    owner = model_at(Stage, tuple(section.split("."))) if section else Stage
    assert owner is not None and (name in owner.model_fields or (not section and name in Run.model_fields))


def test_every_key_with_a_name_of_trls_is_in_the_table(arguments: set[str]) -> None:
    """Where a name is the same, a reader wants to know whether the meaning is."""
    told = {key for row in columns("TRL's arguments") for key in row[1]}
    sections = ["model", "model.adapter", "data", "optimizer", "schedule", "train", "validation", "checkpoint"]
    sections += ["reference", "rollout", "rollout.sampling", "rollout.importance_sampling_correction"]
    ours = {f"algorithm.{name}" for name in algorithm_settings()}
    for section in sections:
        owner = model_at(Stage, tuple(section.split(".")))
        assert owner is not None
        ours |= {f"{section}.{name}" for name in owner.model_fields}
    assert sorted(key for key in ours - told if key.rpartition(".")[2] in arguments) == []


@pytest.mark.parametrize("key", sorted(OTHER_KEYS))
def test_a_key_of_trls_is_refused_with_the_one_of_the_table(key: str) -> None:
    """What a message says to write exists in the schema, and is the page's where the page names the argument."""
    wanted = re.split(r"[:,]", OTHER_KEYS[key])[0]
    section, _, name = wanted.rpartition(".")
    owner = model_at(Stage, tuple(section.split("."))) if section else Run
    assert owner is not None and (name in owner.model_fields or name in Stage.model_fields)
    rows = [row[1] for row in columns("TRL's arguments") if key in row[0]]
    assert not rows or any(wanted in row for row in rows)
    assert unknown(key, (), FIXES) == f"write it as {OTHER_KEYS[key]}"
