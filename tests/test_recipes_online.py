"""Recipes that learn from rewards, as they stand but for a tiny model, few steps, short answers and a high rate.

Their rewards are their own, and need answers of which some are right. So in this world people say 7 to two questions of
three and 5 to the third, like 5 better, and 5 is right: a model after ``sft`` says 7 where it says what is likeliest,
and has learned from its rewards when it says 5.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.training.launch import train
from align.core.training.sample_log import read_samples
from align.schemas.errors import AlignError
from tests.core.runs import rows
from tests.plugins import judges
from tests.recipes import ONLINE, assert_improved, assert_loads, shrunk

ROOT = Path(__file__).parents[1]

IMPROVES = {
    "rloo/rloo": ("val/reward", 3.0),
    "reinforce/reinforce": ("val/reward", 0.9),
    "grpo/grpo": ("val/reward", 0.9),
    "grpo_vllm/grpo": ("val/reward", 0.9),
    "online_dpo/online_dpo": ("val/reward", 3.0),
    "ppo/sft": ("val/loss", -1.0),
    "ppo/reward_model": ("val/margin", 2.0),
    "ppo/ppo": ("val/reward", 3.0),
    "sft_dpo_grpo/sft": ("val/loss", -1.0),
    "sft_dpo_grpo/dpo": ("val/rewards/accuracies", 0.5),
    "sft_dpo_grpo/grpo": ("reward", 0.5),  # of what it samples: dpo has taught it to say 5 where it says one thing only
    "best_of_n/sft": ("val/loss", -1.0),
    "best_of_n/sft_on_best": ("val/loss", -1.0),
    "rlaif/dpo": ("val/rewards/accuracies", 0.5),
}
"""For each stage a metric, and by how much at least it changes from the first time that it is measured to the last."""

TEMPLATE = {"enable_thinking": False}


def write_sevens(kind: str, path: Path) -> Path:
    """The rows of the online recipes' world; ``prompt``: questions with their solution."""
    made = []
    for number, row in enumerate(rows("dpo", count=60)):
        said = {name: [{"role": "assistant", "content": digit}] for name, digit in (("5", "5"), ("7", "7"))}
        match kind:
            case "sft":
                made.append({"messages": row["prompt"] + said["7" if number % 3 else "5"]})
            case "dpo":
                made.append({"prompt": row["prompt"], "chosen": said["5"], "rejected": said["7"]})
            case _:
                made.append({"prompt": row["prompt"], "solution": "5", "chat_template_kwargs": TEMPLATE})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def learned(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which two recipes were run: ``sft`` made a model that answers, and ``reward_model``."""
    place = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(place / "cache"))
        patch.chdir(place)
        (place / "data").mkdir()
        (place / "recipes").symlink_to(ROOT / "recipes")
        for name, kind in (("chats", "sft"), ("preferences", "dpo"), ("math", "prompt"), ("prompts", "prompt")):
            write_sevens(kind, place / "data" / f"{name}.jsonl")
        for name, start in (("sft", tiny_model_dir), ("reward_model", place / "runs/sft/sft/export")):
            train(shrunk(ROOT / f"recipes/{name}.yaml", f"model.path={start}"), progress=False)
        (place / "Qwen").mkdir()
        (place / "Qwen" / "Qwen3-0.6B").symlink_to(place / "runs/sft/sft/export")
        (place / "Qwen" / "Qwen3-0.6B-Base").symlink_to(tiny_model_dir)
        yield place


def likes_five(conversation: list[dict[str, str]]) -> str:
    """A judge who keeps to this world's only principle."""
    text = conversation[-1]["content"]
    tag = re.findall(r"^VERDICT ([0-9a-f]{12}): WINNER$", text, re.MULTILINE)[-1]
    fenced = {name: inside for name, _, inside in judges.FENCE.findall(text)}
    good = {name: "5" in fenced[f"ANSWER {name}"] for name in "AB"}
    return f"VERDICT {tag}: {'TIE' if good['A'] == good['B'] else 'A' if good['A'] else 'B'}"


@pytest.mark.parametrize("recipe", ONLINE, ids=lambda path: path.stem)
def test_a_recipe_learns_from_rewards(recipe: Path, learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(learned / "cache"))
    monkeypatch.chdir(learned)
    with judges.serving() as server:
        server.judge = likes_five
        more = {
            "grpo_vllm": [
                "rollout.generator=local"
            ],  # the engine itself is met in tests/plugins/test_vllm_generator.py
            "rlaif": [
                f"stages.labels.rollout.rewards.0.url={server.url}",
                "data.validation_fraction=0.25",  # a default that is not for making rows: all prompts are asked
            ],
        }
        run = shrunk(recipe, *more.get(recipe.stem, ()))
        results = train(run, progress=False)
        assert bool(server.seen) == (recipe.stem == "rlaif")

    for stage, result in zip(run.stages, results, strict=True):
        place = learned / run.output / stage.name
        if stage.rollout is not None:
            samples = [row for file in sorted((place / "samples").iterdir()) for row in read_samples(file)]
            assert len(samples) >= 60 and all(math.isfinite(row["reward"]) for row in samples)
        if stage.algorithm.type == "best_of_n":
            assert len(samples) == 60 * stage.algorithm.settings["num_generations"]
            assert all(map(math.isfinite, result.metrics.values()))
            assert result.metrics["pass@1"] < result.metrics["pass@4"]
        else:
            assert_improved(place, *IMPROVES[f"{recipe.stem}/{stage.name}"], result.metrics)
            assert_loads(result.export, stage.algorithm.type == "reward_model")
    if recipe.stem in HANDED_ON:
        HANDED_ON[recipe.stem](learned / run.output)


def rows_are_learned(maker: Path, learner: Path) -> list[dict[str, Any]]:
    """The rows that one stage made: the next has read them all, and asks with the same template variables."""
    file = maker / "export" / "rows.jsonl"
    made = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    (source,) = json.loads((learner / "data_report.json").read_bytes())["sources"]
    (read,) = source["files"]
    assert source["rows"] == len(made) >= 8 and read["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert all(row["chat_template_kwargs"] == TEMPLATE for row in made)
    return made


def said(answer: list[dict[str, str]]) -> str:
    (message,) = answer
    assert message["role"] == "assistant"
    return message["content"]


def best_of_n_hands_on(output: Path) -> None:
    """Right answers only."""
    made = rows_are_learned(output / "best_of_n", output / "sft_on_best")
    assert {re.sub(r"\D", "", said(row["completion"])) for row in made} == {"5"}


def rlaif_hands_on(output: Path) -> None:
    """Pairs of which the judge likes the better one."""
    for row in rows_are_learned(output / "labels", output / "dpo"):
        assert "5" in said(row["chosen"]) and "5" not in said(row["rejected"])


def ppo_hands_on(output: Path) -> None:
    """Rewards are the scores of the stage ``reward_model``, and the critic its network: 24 steps at the critic's own
    rate of 1e-5 move no weight by more than about that much each."""
    export = output / "reward_model" / "export"
    scorer, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(export),
        AutoTokenizer.from_pretrained(export),
    )
    samples = [row for row in read_samples(output / "ppo/samples/phase-000001.parquet") if row["finish"] == "stop"]
    assert len(samples) > 10
    for row in samples:
        chat = [*json.loads(row["prompt"]), {"role": "assistant", "content": row["completion"]}]
        tokens = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), return_tensors="pt")
        assert row["reward"] == pytest.approx(scorer(**tokens).logits.item(), abs=1e-3)

    newest, _ = checkpoint.latest_valid(output / "ppo" / "checkpoints")
    assert newest is not None
    kept = checkpoint.load(newest)["state_dict"]
    critic = {name.removeprefix("critic.model."): kept[name] for name in kept if name.startswith("critic.model.")}
    assert critic.keys() == scorer.state_dict().keys()
    for name, weights in scorer.state_dict().items():
        assert 0 < (critic[name] - weights).abs().max() < 24 * 1.5e-5


HANDED_ON = {"best_of_n": best_of_n_hands_on, "rlaif": rlaif_hands_on, "ppo": ppo_hands_on}


def test_rows_are_not_taken_for_a_model_nor_a_model_for_rows() -> None:
    recipe = ROOT / "recipes" / "best_of_n.yaml"
    for given, words in (
        ("model.path=stage:best_of_n", "which makes rows and no model"),
        ("data.train=stage:sft", "which makes no rows"),
    ):
        with pytest.raises(AlignError, match=words):
            train(run_file.load(recipe, [f"stages.sft_on_best.{given}"]), progress=False)


def test_the_manual_s_example_runs(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").symlink_to(learned / "Qwen")
    manual = (ROOT / "docs" / "online.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", manual, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (result,) = train(run_file.load("online.yaml"), progress=False)
    assert_loads(result.export)
    (*_, phase) = sorted((tmp_path / "runs" / "online" / "rloo" / "samples").iterdir())
    assert phase.name == "phase-000004.parquet" and len(read_samples(phase)) == 8


def test_every_stage_that_learns_is_expected_to() -> None:
    assert {name.partition("/")[0] for name in IMPROVES} == {recipe.stem for recipe in ONLINE}
