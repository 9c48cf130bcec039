"""What the checks work on, made by code: models of a given shape, a tokenizer of bytes, rows of known length, runs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recording import clear
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.schemas.run import Run

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 320}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False, "initializer_range": 0.1},
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 32_000}
    | {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "medium": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "vocab_size": 32_000}
    | {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False},
    # Llama 3.2 1B's
    "large": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128_256}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    # Llama 3.1 8B's
    "huge": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "vocab_size": 128_256}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}
"""Llamas: 58M with all heads their own keys, 336M with grouped ones, 1.24B with tied ends, 8.03B."""

TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{%- if m['role'] == 'assistant' %}{%- generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ m['content'] + '<|im_end|>' }}{%- endif %}{{ '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

AROUND = 21
"""Tokens of a question and its answer beside their own letters."""

REWARD = '''"""Rewards of the GPU checks."""


def low(completion_ids):
    """The share of tokens from the lower half of the alphabet: dense, so that every group has something to say."""
    return [sum(token < 160 for token in ids) / len(ids) for ids in completion_ids]
'''


QUIET = {"warmup": 1000}
"""No alarms: what these models learn is not worth one."""


ONLINE = ("grpo", "rloo", "reinforce", "ppo", "online_dpo", "best_of_n")
"""Algorithms that sample their own completions."""
LEARNING = ("optimizer", "schedule", "checkpoint")


def save_model(directory: Path, shape: str, *, seed: int = 0) -> Path:
    """Random weights and the tokenizer as an ordinary Hugging Face directory; large ones in bfloat16, for the disk."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=3)
    device = "cuda" if torch.cuda.is_available() and shape != "tiny" else "cpu"
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if shape != "tiny":
        model = model.to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def model_in(work: Path, shape: str) -> Path:
    """The model of that shape under ``work``, made when it is first asked for."""
    directory = work / shape
    if not directory.exists():
        save_model(directory, shape)
        clear()
    return directory


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, so that lengths are known; a question ends with what ends an answer."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=260, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[3],
        additional_special_tokens=special[2:3],
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
    made.chat_template = TEMPLATE
    return made


def write_rows(path: Path, kind: str, lengths: list[tuple[int, int]], seed: int = 0) -> Path:
    """A row of each (letters of the question, of the answer): the good answer repeats the question's first letter."""
    dice = random.Random(seed)

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    with open(path, "w") as file:
        for number, (asked, answered) in enumerate(lengths):
            question = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=asked))
            good = said("assistant", question[0] * answered)
            bad = said("assistant", "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=answered)))
            prompt = said("user", question)
            row: dict[str, Any]
            match kind:
                case "sft":
                    row = {"messages": prompt + good}
                case "kto":
                    row = {"prompt": prompt, "completion": bad if number % 2 else good, "label": number % 2 == 0}
                case "dpo" | "reward_model":
                    row = {"prompt": prompt, "chosen": good, "rejected": bad}
                case _:
                    row = {"prompt": prompt}
            file.write(json.dumps(row) + "\n")
    return path


def run_of(algorithm: Mapping[str, Any], weights: Path, rows: Path, output: Path, **laid_over: Any) -> Run:
    """One stage called ``only`` on one device; ``laid_over`` are sections laid over the defaults below."""
    sections: dict[str, Any] = {
        "model": {"path": str(weights)},
        "data": {"train": [{"path": str(rows)}], "dataset_num_proc": 1, "max_length": 8192},
        "algorithm": dict(algorithm),
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"type": "constant"},
        "train": {"batch_size": 8},
        "checkpoint": {"save_steps": 1000},
        "devices": {"count": 1},
    }
    if algorithm["type"] in ONLINE:
        (rows.parent / "reward.py").write_text(REWARD)
        reward = {"type": "python", "file": str(rows.parent / "reward.py"), "function": "low"}
        sections["rollout"] = {"rewards": [reward], "sampling": {"max_completion_length": 8}, "watch": QUIET}
    if algorithm["type"] == "best_of_n":  # it learns nothing, so there is nothing to say of how
        sections = {name: section for name, section in sections.items() if name not in LEARNING}
    for name, section in laid_over.items():
        sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
    return Run.model_validate({"output": str(output), "stages": [{"name": "only", **sections}]})
