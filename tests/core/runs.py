"""Small whole runs for the engine's tests: rows that each algorithm learns from, and a one-stage run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from align.schemas.run import Run

REWARDS = Path(__file__).parents[1] / "online" / "rewards.py"

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "dog",
    "sea",
    "is",
    "wide",
    "blue",
    "wind",
    "cold",
    "sum",
    "of",
    "two",
    "three",
    "five",
    "right",
    "wrong",
    "answer",
]


ONLINE = {"rloo": 4, "reinforce": 2, "grpo": 4, "ppo": 2, "online_dpo": 4, "best_of_n": 16}
"""Algorithms that sample their own answers, and the answers to each prompt here."""


def rows(algorithm: str, count: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of varied length: the good answer repeats the prompt's first word, the bad one does not."""
    dice = random.Random(seed)
    made: list[dict[str, Any]] = []
    for number in range(count):
        words = dice.choices(WORDS, k=dice.randint(2, 9))
        prompt = [{"role": "user", "content": " ".join(words)}]
        good = [{"role": "assistant", "content": " ".join([words[0]] * dice.randint(1, 5))}]
        bad = [{"role": "assistant", "content": " ".join(dice.choices(WORDS, k=dice.randint(1, 6)))}]
        match algorithm:
            case "pretrain":
                made.append({"text": " ".join(dice.choices(WORDS, k=dice.randint(4, 30)))})
            case "sft":
                made.append({"messages": prompt + good})
            case name if name in ONLINE:
                made.append({"prompt": prompt, "solution": words[0]})
            case "kto":
                made.append({"prompt": prompt, "completion": bad if number % 2 else good, "label": number % 2 == 0})
            case _:
                made.append({"prompt": prompt, "chosen": good, "rejected": bad})
    return made


def write_rows(algorithm: str, path: Path, count: int = 48, seed: int = 0) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(algorithm, count, seed)))
    return path


def run_for(algorithm: str, weights: Path, rows_file: Path, output: Path, **laid_over: Any) -> Run:
    """One stage called ``only``; ``laid_over`` are sections (``train={...}``) laid over the defaults below."""
    sections: dict[str, Any] = {
        "model": {"path": str(weights)},
        "data": {"train": [{"path": str(rows_file)}], "validation_fraction": 0.2, "dataset_num_proc": 1},
        "algorithm": {"type": algorithm},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"type": "cosine", "warmup_steps": 0.1},
        "train": {"num_train_epochs": 3, "batch_size": 8, "micro_batch_size": 3},
        "validation": {"eval_steps": 5},
        "checkpoint": {"save_steps": 2},
    }
    if algorithm in ONLINE:
        # Several phases, each of four steps over the same answers, so that kills and resumes fall inside them.
        sections["algorithm"]["num_generations"] = ONLINE[algorithm]
        sections["train"]["num_train_epochs"] = 2
        reward = {"type": "python", "file": str(REWARDS), "function": "low_ids", "normalize": True}
        sections["rollout"] = {"rewards": [reward], "batches": 2, "sampling": {"max_completion_length": 8}}
        if algorithm in ("rloo", "grpo", "ppo"):
            sections["algorithm"]["num_iterations"] = 2
        if algorithm == "best_of_n":  # learns nothing, so there is nothing to say of how
            for name in ("optimizer", "schedule", "validation", "checkpoint"):
                del sections[name]
            sections["train"].pop("num_train_epochs")
    for name, section in laid_over.items():
        sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
    if not (sections["data"]["validation_fraction"] or sections["data"].get("validation")):
        sections.pop("validation", None)
    return Run.model_validate({"output": str(output), "stages": [{"name": "only", **sections}]})
