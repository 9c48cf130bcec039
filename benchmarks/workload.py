"""Models, tokenizer and rows of the benchmarks of speed, made here, and the check that all sides did the same.

Rows are sums with some words around them, in TRL's conversational formats. The length of an answer is log-normal, as
real ones are: where every answer has the same length nobody pays for padding.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.data.step_plan import epoch_order

if TYPE_CHECKING:
    from transformers import Qwen2Config

MODELS: dict[str, dict[str, int]] = {
    "0.85m": {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4},
    "42m": {"vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8},
    "tiny": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2},
}
"""Shapes of Qwen2 that can be made; ``tiny`` tries the benchmarks themselves."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "so",
    "we",
    "add",
    "the",
    "two",
    "numbers",
    "then",
    "carry",
    "one",
    "over",
    "and",
    "check",
    "that",
    "it",
    "is",
    "right",
    "because",
    "first",
    "take",
    "tens",
    "units",
    "sum",
    "hence",
    "now",
    "again",
    "write",
    "down",
    "step",
    "by",
    "result",
    "total",
    "count",
    "plus",
    "from",
    "with",
    "both",
    "next",
    "last",
]


def qwen2(name: str, **settings: Any) -> Qwen2Config:
    """Return the configuration of a model of ``MODELS``; settings are laid over it."""
    from transformers import Qwen2Config

    shape = MODELS[name]
    width = shape["hidden_size"]
    return Qwen2Config(
        **shape,
        intermediate_size=3 * width,
        num_attention_heads=width // 32,
        num_key_value_heads=max(1, width // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **settings,
    )


def make_model(name: str, directory: Path, reward: bool = False) -> Path:
    """Write a random model with its tokenizer, and return its directory; one that is a directory is returned as it is.

    reward: with a score head in place of the language head, so that every side begins with the same one.
    """
    if name not in MODELS:
        return Path(name)
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["user assistant system What is 1 + 2 ? The answer is 3. hello world"] * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[2], pad_token=special[0])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    config = qwen2(
        name,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = (Qwen2ForSequenceClassification if reward else Qwen2ForCausalLM)(config)
    model.save_pretrained(directory)
    return directory


def make_rows(algorithm: str, count: int, long_prompts: bool = False) -> list[dict[str, Any]]:
    """Return rows that an algorithm learns from. long_prompts: of some 470 tokens instead of 50 (online algorithms)."""
    dice = random.Random(0)
    return [_row(algorithm, dice, long_prompts) for _ in range(count)]


def _row(algorithm: str, dice: random.Random, long_prompts: bool) -> dict[str, Any]:
    a, b = dice.randint(0, 99), dice.randint(0, 99)
    if algorithm in ("grpo", "rloo", "ppo"):
        words = dice.randint(85, 110) if long_prompts else dice.randint(3, 12)
    else:
        words = _log_normal(dice, 4, 40)
    prompt = _message("user", f"{_words(dice, words)} . What is {a} + {b} ?")

    def answer(total: int) -> list[dict[str, str]]:
        return _message("assistant", f"{_words(dice, _log_normal(dice, 20, 110))} . The answer is {total}")

    good, bad = answer(a + b), answer(a + b + dice.choice([-10, -2, -1, 1, 2, 10]))
    match algorithm:
        case "sft":
            return {"prompt": prompt, "completion": good}
        case "kto":
            right = dice.random() < 0.5
            return {"prompt": prompt, "completion": good if right else bad, "label": right}
        case "dpo" | "reward_model":
            return {"prompt": prompt, "chosen": good, "rejected": bad}
        case _:
            return {"prompt": prompt, "answer": str(a + b)}


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(count))


def _log_normal(dice: random.Random, median: int, most: int) -> int:
    return min(most, max(1, round(median * math.exp(0.8 * dice.gauss(0, 1)))))


def write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def in_order_of_align(rows: list[dict[str, Any]], batch: int) -> Iterator[dict[str, Any]]:
    """Yield the rows as align's first epoch takes them, for a trainer that takes them in the order of the file."""
    for step in epoch_order(np.zeros(len(rows), np.int32), (1.0,), 0, 0, batch):
        yield from (rows[int(i)] for i in step)


def arithmetic(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Score 1 for the right sum, and a little for digits, so that the answers of a group differ. (TRL's signature.)"""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        digits = sum(character.isdigit() for character in text) / max(1, len(text))
        scores.append(float(f"answer is {right}" in text) + 0.1 * digits)
    return scores


def assert_same_rows(found: dict[str, dict[str, Any]]) -> None:
    """Raise where a side learned from other rows at a step than align did."""
    ours = found["align"]["rows"]
    for name, side in found.items():
        for step, (mine, theirs) in enumerate(zip(ours, side["rows"], strict=True), 1):
            if mine != theirs:
                raise RuntimeError(f"step {step}: {name} learned from other rows than align, or in another order")


def curve_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative difference of losses and gradient norms, NaN where one is not a number."""
    differences = [
        abs(mine[name] - other[name]) / max(abs(other[name]), 1e-9)
        for mine, other in zip(ours["curve"], theirs["curve"], strict=False)  # TRL logs the last step after its end
        for name in ("loss", "grad_norm")
    ]
    return float(np.max(differences))  # the built-in max drops a NaN that is not the first
