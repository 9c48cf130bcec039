"""Worlds of four words with known optima, and a model that begins with none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.schemas.run import Run

REWARDS = Path(__file__).with_name("rewards.py")
WORDS = [f"w{i}" for i in range(4)]
PROBES = {"constant": 1, "shifted": 1, "at_the_end": 3}
"""Each probe and the length of its answers; the best possible reward is 1."""


def python(function: str, **settings: Any) -> dict[str, Any]:
    """A reward of the file beside this one, as a run file has it."""
    return {"type": "python", "file": str(REWARDS), "function": function, **settings}


def save_word_model(directory: Path) -> Path:
    """A Llama of one layer over four words, an end and a padding token."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>").save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def probe_run(
    probe: str, algorithm: dict[str, Any], model: Path, output: Path, steps: int, rate: float, seed: int = 0
) -> Run:
    """Learn one probe with one algorithm."""
    prompts = output.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    stage = {
        "name": "only",
        "model": {"path": str(model)},
        "data": {"train": str(prompts), "dataset_num_proc": 1},
        "algorithm": algorithm,
        "optimizer": {"learning_rate": rate},
        "schedule": {"type": "constant"},
        "train": {"batch_size": 64, "max_steps": steps},
        "checkpoint": {"save_steps": steps},
        "seed": seed,
        "rollout": {
            "rewards": [python(probe)],
            "sampling": {"max_completion_length": PROBES[probe]},
            "samples": "none",
        },
    }
    return Run.model_validate({"output": str(output), "stages": [stage]})
