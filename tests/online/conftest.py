"""A model that half knows how to add, for learning from rewards to make better; and prompts with solutions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaForCausalLM

from align.core.training.launch import train
from align.quickstart.model import make_model, make_tokenizer
from align.schemas.run import Run

FORGETS = 0.7
"""How often its teacher forgot to carry: ``7+5=2.`` The likeliest answer is then the wrong one."""


class Novice(NamedTuple):
    """model: adds single digits as its teacher did. train, held_out: prompt files, of different sums."""

    model: Path
    train: Path
    held_out: Path


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_pupil(directory: Path, texts: Iterable[str]) -> None:
    """The quickstart's small Llama, with heads as wide as vLLM wants them on a CPU."""
    tokenizer = make_tokenizer(texts)
    config = make_model(tokenizer, 0).config
    config.update({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def novice(tmp_path_factory: pytest.TempPathFactory) -> Novice:
    """Taught all sums by a careless teacher; which of them it is later asked to practise is another matter."""
    place, dice = tmp_path_factory.mktemp("novice"), random.Random(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]

    def asked(a: int, b: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"What is {a}+{b}?"}]

    def lesson(a: int, b: int) -> dict[str, Any]:
        said = a + b - (10 if a + b >= 10 and dice.random() < FORGETS else 0)
        return {"messages": [*asked(a, b), {"role": "assistant", "content": f"{a}+{b}={said}."}]}

    lessons = [lesson(*pair) for pair in dice.choices(pairs, k=9_600)]
    save_pupil(place / "model", [message["content"] for row in lessons[:500] for message in row["messages"]])
    stage = {
        "name": "sft",
        "model": {"path": str(place / "model")},
        "data": {"train": str(write(place / "lessons.jsonl", lessons)), "dataset_num_proc": 1},
        "algorithm": "sft",
        "optimizer": {"learning_rate": 3e-3, "adam_beta2": 0.98},
        "schedule": {"type": "cosine", "warmup_steps": 30},
        "train": {"batch_size": 32},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(place / "cache"))
        (sft,) = train(Run.model_validate({"output": str(place / "run"), "stages": [stage]}), progress=False)
    dice.shuffle(pairs)
    prompts = [{"prompt": asked(a, b), "solution": str(a + b)} for a, b in pairs]
    train_rows, held_out = prompts[:64], prompts[64:]
    return Novice(sft.export, write(place / "prompts.jsonl", train_rows), write(place / "held-out.jsonl", held_out))


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A maker of one-stage grpo runs on twelve numbered prompts."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the sea {i}"}) + "\n" for i in range(12)))

    def make(name: str, rollout: Mapping[str, Any], **sections: Any) -> Run:
        stage = {
            "name": "only",
            "model": {"path": str(tiny_model_dir)},
            "data": {"train": str(prompts), "dataset_num_proc": 1},
            "algorithm": {"type": "grpo", "num_generations": 4},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"batch_size": 16, "max_steps": 4},
            "rollout": {"sampling": {"max_completion_length": 6}, **rollout},
            **sections,
        }
        return Run.model_validate({"output": str(tmp_path / name), "stages": [stage]})

    return make
