"""Tiny models of several architectures, and prompts to sample completions of."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tests.tiny import EOS, LLAMA, SMALL, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids(EOS)
FAMILIES = {
    "qwen3": Qwen3Config(**LLAMA),
    "mistral-sliding": MistralConfig(**LLAMA, sliding_window=6),
    "gemma2-softcap-sliding": Gemma2Config(**LLAMA, sliding_window=6),
    "gpt2-learned-positions": GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    "opt-offset-positions": OPTConfig(
        **SMALL, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "bloom-alibi": BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mamba-recurrent": MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2),
}
TEXTS = ["The cat", "The sea is wide and", "What is the sum of two and three?", "No", "The dog sat on the"]
PROMPTS = [np.array(TOKENIZER(text)["input_ids"], np.int32) for text in TEXTS]


def family(name: str) -> PreTrainedModel:
    """Return a model of one of the families, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(FAMILIES[name])](FAMILIES[name])
    return model.float().eval()
