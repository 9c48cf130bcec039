"""The thresholds: each with its source, and a user's own over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.advisor.estimate.plan_fit import GROUP, plan_fit
from align.advisor.project_facts import Facts
from align.advisor.thresholds import Floor, Thresholds, shipped
from align.core.plugin_system.registry import config_of, registry
from align.schemas.advice import PlanStep
from align.schemas.errors import AlignError
from align.schemas.project import Project


def test_every_number_has_a_source() -> None:
    limit = Thresholds.load()
    assert set(limit.sources) == set(Thresholds.model_fields) - {"version", "sources"}
    assert all(len(source) > 10 for source in limit.sources.values())


def test_the_numbers_are_those_of_the_research() -> None:
    limit = Thresholds.load()
    assert limit.sft_rows == Floor(below=10, warn=500, comfortable=1000)
    assert limit.preference_rows == Floor(below=50, warn=500, comfortable=5000)
    assert (limit.corpus_tokens.below, limit.corpus_tokens.warn) == (10**8, 10**9)
    assert (limit.few_rules, limit.many_rules) == (5, 20)


def test_a_file_lays_its_own_over_them(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("many_rules: {value: 25, source: our own study}\nsft_rows: {warn: 300}\n")
    own, ours = Thresholds.load(file), Thresholds.load()
    assert own.many_rules == 25 and own.sources["many_rules"] == "our own study"
    assert own.sft_rows == Floor(below=10, warn=300, comfortable=1000)
    assert own.sources["sft_rows"] == str(file)
    assert own.corpus_tokens == ours.corpus_tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("many_ruls: {value: 3}", "is no threshold\n    did you mean 'many_rules'?"),
        ("many_rules: 25", "is 25, not a mapping\n    write many_rules: {value: ...}"),
        ("sft_rows: {warn: 5}", "below, warn and comfortable must not fall"),
        ("sft_rows: {wrn: 5}", "is not known\n    did you mean 'warn'?"),
        ("sft_rows: {warn: -5}", "greater than or equal to 0"),
        ("near_target: {value: many}", "valid number"),
        ("many_rules: {value: [}", "is not YAML"),
        ("- 5", "is not a mapping"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(AlignError) as caught:
        Thresholds.load(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


def test_all_of_it_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("a: 1\nb: 2\n")
    with pytest.raises(AlignError) as caught:
        Thresholds.load(file)
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="cannot be read"):
        Thresholds.load(tmp_path / "none.yaml")


def test_the_data_lints_know_the_same_floors() -> None:
    """Core may not import the adviser, so the lints have the floors once more."""
    from align.core.data.lint.linter import FLOORS

    limit = shipped()
    assert {
        "completion": limit.sft_rows.below,
        "conversation": limit.sft_rows.below,
        "preference": limit.preference_rows.below,
        "unpaired": limit.feedback_rows.below,
        "prompt": limit.prompt_rows.below,
    } == FLOORS


def test_a_users_thresholds_reach_the_estimate(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("tokens_per_row: {value: 1200}\nbytes_per_token: {value: 2}\n")
    steps = [PlanStep(stage="sft", why=[])]
    for size in ({"rows": 1000}, {"bytes": 1_000_000}):
        form = {"model": {"params_b": 1}, "data": [{"kind": "sft_pairs", "size": size}]}
        facts = Facts(Project.model_validate(form))
        (_, usual, _), (_, own, _) = (plan_fit(facts, steps, limit) for limit in (shipped(), Thresholds.load(file)))
        assert usual is not None and own is not None and usual.tokens is not None and own.tokens is not None
        assert own.tokens.low == 2 * usual.tokens.low


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_answers_to_a_prompt_are_those_of_the_algorithm(name: str) -> None:
    config = config_of(registry.get("algorithm", name))
    assert config.model_fields["num_generations"].default == GROUP[name]
