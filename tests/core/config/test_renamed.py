"""Old keys and metrics are refused by name, with the new one, wherever a user may write them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from align.cli import main
from align.core.config.run_file import load
from align.core.config.yaml_loader import write
from align.core.engine.callbacks import _no_such_metric
from align.core.plugin_system import registry
from align.core.plugin_system.registry import config_of, model_at
from align.schemas.errors import AlignError
from align.schemas.renamed import (
    NOT_NEEDED,
    OTHER_ALGORITHM_KEYS,
    RENAMED,
    RENAMED_METRICS,
    RENAMED_OPTIONS,
    new_name,
)
from align.schemas.run import Stage

OLD = [(section, old, new) for section, names in RENAMED.items() for old, new in names.items()]
BASE: dict[str, Any] = {"output": "out", "model": {"path": "base"}, "data": {"train": "rows.jsonl"}}


def settings_of(section: str) -> dict[str, set[str]]:
    """The keys of a section by who reads them: an algorithm's name, or the section itself."""
    if section == "algorithm":
        return {name: set(config_of(registry.get(section, name)).model_fields) for name in registry.names(section)}
    found = model_at(Stage, tuple(section.split(".")))
    assert found is not None, f"{section} is no section of a stage"
    return {section: set(found.model_fields)}


def refused(values: dict[str, Any], place: Path, *overrides: str) -> str:
    place.write_text(write(values))
    with pytest.raises(AlignError) as raised:
        load(place, overrides)
    return str(raised.value)


@pytest.mark.parametrize(("section", "old", "new"), OLD)
def test_the_new_key_is_there_and_the_old_one_is_not(section: str, old: str, new: str) -> None:
    settings = settings_of(section)
    assert any(new in keys for keys in settings.values())
    assert not any(old in keys and new in keys for keys in settings.values())
    assert new_name(section, old) == new and new_name(section, new) is None


@pytest.mark.parametrize(("section", "old", "new"), OLD)
def test_an_old_key_is_refused_with_the_new_one(section: str, old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for reader, keys in settings_of(section).items():
        if new not in keys:
            continue
        values: dict[str, Any] = {**BASE, "algorithm": {"type": reader if section == "algorithm" else "grpo"}}
        inner = values
        for part in section.split("."):
            inner = inner.setdefault(part, {})
        wanted = f"{section}.{old}\n    has a new name\n    write it as {new}"
        assert f"command line: {wanted}" in refused(values, file, f"{section}.{old}=1")
        inner[old] = 1
        message = refused(values, file)
        assert f"{file} line " in message and f": {wanted}" in message


def test_an_old_key_in_the_wrong_place_is_sent_to_the_right_one(tmp_path: Path) -> None:
    message = refused({**BASE, "algorithm": "sft", "max_tokens": 8}, tmp_path / "run.yaml")
    assert "max_tokens\n    is not a key here\n    write it as rollout.sampling.max_completion_length" in message


def test_a_key_of_the_stage_among_an_algorithms_settings_is_sent_to_its_section(tmp_path: Path) -> None:
    settings = {"type": "dpo", "learning_rate": 1e-6, "max_length": 64, "precompute_ref_log_probs": True}
    message = refused({**BASE, "algorithm": settings}, tmp_path / "run.yaml")
    assert "algorithm.learning_rate\n    is not a key here\n    write it as optimizer.learning_rate" in message
    assert "algorithm.max_length\n    is not a key here\n    write it as data.max_length" in message
    assert "is not a key here\n    write it as reference.type: precomputed" in message


@pytest.mark.parametrize("place", ["algorithm", "top level"])
@pytest.mark.parametrize(
    ("algorithm", "key", "fix"),
    [
        ("dpo", "rpo_alpha", "write it as algorithm.loss_type: {sigmoid: 1.0, sft: RPO_ALPHA}"),
        ("dpo", "loss_weights", "write it as algorithm.loss_type: {LOSS: WEIGHT, ...}"),
        ("dpo", "lr", "write it as optimizer.learning_rate"),
        ("grpo", "kl_coef", "write it as algorithm.beta"),
        ("grpo", "loss_type", "write it as algorithm.averaging (dapo and bnpo: token; grpo: sequence"),
        ("grpo", "max_prompt_length", "write it as data.max_length, with data.truncation_mode for what is longer"),
        ("grpo", "max_epochs", "write it as algorithm.num_iterations"),
        ("sft", "max_epochs", "write it as train.num_train_epochs"),
        ("grpo", "top_p", "write it as rollout.sampling.top_p"),
        ("sft", "logging_steps", "remove it: every step is logged"),
    ],
)
def test_a_key_of_another_library_is_refused_with_what_to_do(
    algorithm: str, key: str, fix: str, place: str, tmp_path: Path
) -> None:
    settings = {"type": algorithm} | ({key: 1} if place == "algorithm" else {})
    values = {**BASE, "algorithm": settings} | ({key: 1} if place == "top level" else {})
    assert f"{key}\n    is not a key here\n    {fix}" in refused(values, tmp_path / "run.yaml")


@pytest.mark.parametrize("place", ["top level", "train", "stage"])
@pytest.mark.parametrize(("algorithm", "key"), [("dpo", "beta"), ("grpo", "num_generations"), ("grpo", "epsilon")])
def test_an_algorithms_setting_outside_its_section_is_sent_there(
    algorithm: str, key: str, place: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = {**BASE, "algorithm": {"type": algorithm}}
    holder = values
    if place == "train":
        holder = values["train"] = {}
    if place == "stage":
        holder = {"name": "only", "algorithm": values.pop("algorithm")}
        values["stages"] = [holder]
    holder[key] = 1
    message = refused(values, tmp_path / "run.yaml")
    assert f"{key}\n    is not a key here\n    write it as algorithm.{key}" in message


def test_a_setting_that_the_runs_algorithms_lack_is_not_sent_to_them(tmp_path: Path) -> None:
    message = refused({**BASE, "algorithm": "sft", "num_generations": 8}, tmp_path / "run.yaml")
    assert "num_generations\n    is not a key here\n    known: algorithm, " in message


def test_the_settings_that_other_keys_stand_for_exist() -> None:
    readers = settings_of("algorithm")
    for here in OTHER_ALGORITHM_KEYS.values():
        for setting, home in here.items():
            having = [keys for keys in readers.values() if setting in keys]
            assert having and all(home.split(":")[0].split(",")[0].split(" ")[0] in keys for keys in having), home
    of_a_stage = {
        key for section in Stage.model_fields for key in getattr(model_at(Stage, (section,)), "model_fields", ())
    }
    assert not set(NOT_NEEDED) & of_a_stage


@pytest.mark.parametrize("old", RENAMED_METRICS)
def test_an_old_metric_is_refused_with_the_new_one(old: str) -> None:
    stage = SimpleNamespace(name="grpo")
    error = _no_such_metric(SimpleNamespace(held_out_metrics={"val/reward": 1.0}, stage=stage), old)  # type: ignore[arg-type]
    assert str(error) == (
        f"grpo: validation.metric_for_best_model\n    is {old!r}, which the held-out rows do not give\n"
        f"    that metric is called {RENAMED_METRICS[old]} now"
    )


@pytest.mark.parametrize("old", RENAMED_OPTIONS)
@pytest.mark.parametrize("command", [("sample", "model", "Why?"), ("reward", "audit", "exact", "rows.jsonl")])
@pytest.mark.parametrize("form", ["{} 4", "{}=4"])
def test_an_old_option_is_refused_with_the_new_one(old: str, command: tuple[str, ...], form: str) -> None:
    done = CliRunner().invoke(main, [*command, *form.format(old).split()])
    assert done.exit_code == 2
    assert done.stderr == f"command line: {old}\n    has a new name\n    write it as {RENAMED_OPTIONS[old]}\n"
