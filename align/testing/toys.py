"""Tiny models and random rows of every kind, for checks that need no file and no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from align.core.data.examples import Example, TokenSequence
from align.core.models.policy import Policy
from align.schemas.records import Kind

VOCABULARY = 64
"""Tokens of the toy model."""
LENGTHS = ((3, 2, 5), (1, 7, 1), (6, 1, 4), (2, 9, 9), (4, 3, 2), (9, 1, 1), (1, 1, 8), (5, 6, 3))
"""Tokens of the prompt, of an answer, and of a second answer where the kind has two; eight examples."""


def toy_examples(
    kind: Kind, lengths: Sequence[tuple[int, int, int]] = LENGTHS, *, scores_prompt: bool = False, seed: int = 0
) -> list[Example]:
    """Return random rows of one kind: see ``LENGTHS``. ``scores_prompt`` as the algorithm says."""
    draw = np.random.default_rng(seed)
    examples = []
    for index, (prompt, *answers) in enumerate(lengths):
        head = draw.integers(1, VOCABULARY, prompt)
        roles = {"preference": ("chosen", "rejected"), "text": ("text",)}.get(kind, ("completion",))
        sequences = []
        for role, answer in zip(roles, answers, strict=False):
            scored = np.arange(prompt + answer) >= (1 if scores_prompt else prompt)
            tokens = np.concatenate([head, draw.integers(1, VOCABULARY, answer)])
            sequences.append(TokenSequence(role, tokens.astype(np.int32), scored))
        columns = {"preference": {"margin": float(draw.random())}, "unpaired": {"label": float(index % 3 > 0)}}
        examples.append(Example(f"toy:{index}", tuple(sequences), columns.get(kind, {})))
    return examples


def toy_policy(
    head: Literal["language", "reward", "value"] = "language", *, seed: int = 0, sharpness: float = 1.0
) -> Policy:
    """Return a tiny random Llama in float32 with either head; the caller's random state is left alone.

    sharpness: factor on the head's weights. At 100 the log-probabilities of two seeds are some 100 nats apart a token,
    as far as a policy and its reference get after long training on long answers.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_labels": 1}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = LlamaConfig(**settings, initializer_range=0.2)
    build: Any = LlamaForCausalLM if head == "language" else LlamaForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
    with torch.no_grad():
        (model.lm_head if head == "language" else model.score).weight.mul_(sharpness)
    return Policy(model, head).eval()
