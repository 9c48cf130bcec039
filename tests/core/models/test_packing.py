"""The packing probe where attention has windows and chunks: its verdict is what long rows show."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.models.packing import layout_for, probe
from align.core.models.policy import Policy

SMALL = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 16384,
    "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
LOCAL = {"layer_types": ["sliding_attention", "full_attention"]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("", {}),
    "llama4_text": (
        "attention_chunk_size",
        {"layer_types": ["chunked_attention", "full_attention"], "intermediate_size_mlp": 64, "num_local_experts": 2,
         "no_rope_layers": [1, 0]},
    ),
    "mistral": ("sliding_window", {}),
    "gemma2": ("sliding_window", LOCAL),
    "gemma3_text": ("sliding_window", LOCAL),
    "qwen2": ("sliding_window", {"use_sliding_window": True, "max_window_layers": 0}),
    "phi3": ("sliding_window", {}),
    "starcoder2": ("sliding_window", {}),
    "cohere2": ("sliding_window", LOCAL),
    "gpt_oss": ("sliding_window", LOCAL | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "modernbert-decoder": ("local_attention", LOCAL | {"local_attention": 32}),
    "gpt_neo": ("window_size", {"attention_types": [[["global", "local"], 1]]}),
}  # fmt: skip


def policy_of(kind: str, size: int) -> Policy:
    name, own = KINDS[kind]
    given = SMALL | own | ({name: size} if name else {})
    if kind == "gpt_neo":
        given["max_position_embeddings"] = 4096
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **given)
        config._attn_implementation = "eager"
        return Policy(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


def rows(*lengths: int) -> list[Example]:
    draw = np.random.default_rng(0)
    made = []
    for n, length in enumerate(lengths):
        tokens = draw.integers(4, 300, length).astype(np.int32)
        made.append(Example(f"r:{n}", (TokenSequence("text", tokens, np.arange(length) > 0),)))
    return made


def kept_apart(policy: Policy, examples: list[Example]) -> bool:
    """The oracle: rows that reach past the windows, in one row and each alone."""
    with torch.no_grad():
        packed = policy(collate(examples, "packed", 0)).logp_T
        alone = torch.cat([policy(collate([e], "packed", 0)).logp_T for e in examples])
    return bool(torch.allclose(packed, alone, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_is_that_of_rows_which_reach_past_every_window(kind: str) -> None:
    truth = kept_apart(policy_of(kind, 20), rows(50, 43, 37))
    assert truth == (kind not in ("llama4_text", "gpt_oss"))
    for size in (20, 256, 4096):
        policy = policy_of(kind, size)
        before, state = policy.unwrapped.config.to_json_string(), torch.random.get_rng_state()
        packs = probe(policy, rows(70, 12, 5, 90))
        # GPT-Neo makes its masks once, so that only the size itself can be tried, and 4,096 is too long for that
        assert packs == (truth and (kind, size) != ("gpt_neo", 4096)), size
        assert policy.unwrapped.config.to_json_string() == before
        assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_in_chunks_runs_padded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The issue's: a chunk of 256, rows of the old probe's 4 x 64."""
    policy = policy_of("llama4_text", 256)
    with caplog.at_level(logging.WARNING):
        assert layout_for(policy, "cpu", "packed", rows(64, 64, 64, 64)) == "padded"
    assert "Llama4ForCausalLM cannot keep packed sequences apart" in caplog.text


def test_a_window_that_the_model_does_not_heed_is_tried_as_it_is_or_not_packed() -> None:
    policy = policy_of("llama", 0)
    policy.unwrapped.config.sliding_window = 100  # of no layer: found out by rows of 200
    assert probe(policy, rows(30, 30))
    policy.unwrapped.config.sliding_window = 5000  # too long to find out
    assert not probe(policy, rows(30, 30))
    policy.unwrapped.config.layer_types = ["full_attention"] * 2  # the config says that no layer has it
    assert probe(policy, rows(30, 30))
