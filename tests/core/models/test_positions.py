"""Rows longer than a model's positions: named before the first step, for whatever keeps a model's positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align.core.data.examples import Example, InMemory, TokenSequence
from align.core.models.load_and_export import build_policy
from align.core.models.packing import LengthLimits, check_lengths, limits_for, longest_sequence
from align.core.models.policy import Policy
from align.core.training.check import check
from align.core.training.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model
from tests.core.runs import run_for
from tests.tiny import save_tiny, tiny_tokenizer

SMALL = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "gpt2": {"max_position_embeddings": 40},
    "opt": {"max_position_embeddings": 40, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neo": {"max_position_embeddings": 40, "attention_types": [[["global", "local"], 1]]},
    "gpt_bigcode": {"max_position_embeddings": 40},
    "gptj": {"max_position_embeddings": 40, "rotary_dim": 4},
    "codegen": {"max_position_embeddings": 40, "rotary_dim": 4},
    "biogpt": {"max_position_embeddings": 40},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40},
    "bloom": {},
    "mamba": {"state_size": 4},
    "llama": {"max_position_embeddings": 40},
}


def policy_of(kind: str) -> Policy:
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | OWN[kind])).train())


@pytest.mark.parametrize("kind", OWN)
def test_the_limit_is_where_the_model_fails(kind: str) -> None:
    """The oracle is the model itself, on rows of each length."""
    policy = policy_of(kind)
    state = torch.random.get_rng_state()
    limits = limits_for(policy, 64)
    assert policy.training and torch.equal(state, torch.random.get_rng_state())

    def runs(length: int) -> bool:
        ids = torch.ones(1, length, dtype=torch.long) * 5
        try:
            with torch.no_grad():
                policy._run(ids, torch.arange(length)[None], None)
        except (IndexError, RuntimeError):
            return False
        return True

    if kind in ("bloom", "mamba", "llama"):
        assert limits == LengthLimits(None, 40 if kind == "llama" else None) and runs(64)
    else:
        assert limits == LengthLimits(40, 40)
        assert runs(40) and not runs(41)
    assert limits_for(policy, 40).taken is None  # nothing that comes up to there is too long


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}, 512),
    ],
)  # fmt: skip
def test_scaled_rotary_positions(tmp_path: Path, rope: Any, expected: int) -> None:
    save_tiny(tmp_path / "m", rope_parameters={"rope_theta": 1e4} | rope)
    policy, _ = build_policy(Model(path=str(tmp_path / "m")), "language", seed=0, dropout=False)
    assert limits_for(policy, 4096) == LengthLimits(None, expected)


def example(source: str, *lengths: int) -> Example:
    return Example(source, tuple(TokenSequence("text", np.full(n, 5, np.int32), np.arange(n) > 0) for n in lengths))


def test_each_sequence_counts_by_itself() -> None:
    examples = InMemory([example("a", 30, 30), example("b", 50, 3), example("c", 20), example("d", 41, 41)])
    assert longest_sequence(examples) == 50
    policy = policy_of("gpt2")
    with pytest.raises(
        AlignError, match=r"2 rows, the longest of 50 tokens; GPT2LMHeadModel has 40 positions"
    ) as caught:
        check_lengths(policy, limits_for(policy, 50), [examples])
    assert caught.value.problems[0].where == "b, d"
    assert check_lengths(policy, limits_for(policy, 40), [InMemory([example("a", 40, 40)])]) == []


def gpt2(directory: Path, positions: int = 48) -> Path:
    config = AutoConfig.for_model("gpt2", **SMALL | {"max_position_embeddings": positions})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def texts(path: Path, *words: int) -> Path:
    path.write_text("".join(json.dumps({"text": "cat " * n}) + "\n" for n in words))
    return path


@pytest.mark.parametrize("adapter", [None, {"r": 2}], ids=["full", "lora"])
def test_long_rows_stop_a_check_and_a_run(tmp_path: Path, adapter: Any) -> None:
    rows = texts(tmp_path / "rows.jsonl", 3, 60, 5, 90)
    model = {"path": str(gpt2(tmp_path / "m")), "adapter": adapter and Adapter(**adapter).model_dump()}
    data = {"train": [{"path": str(rows)}], "validation_fraction": 0.0}
    run = run_for("pretrain", tmp_path / "m", rows, tmp_path / "run", data=data, model=model)
    for act in (check, train):
        with pytest.raises(AlignError, match="longer than the model can take: 2 rows") as caught:
            act(run)
        assert "rows.jsonl:2" in str(caught.value) and "rows.jsonl:4" in str(caught.value)
        assert "data.max_length: 48" in str(caught.value)
    cut = run_for(
        "pretrain", tmp_path / "m", rows, tmp_path / "run2", model=model,
        data=data | {"max_length": 48, "truncation_mode": "split"},
    )  # fmt: skip
    assert check(cut)[0].longest <= 48


def test_chunks_of_text_that_are_too_long_are_named_too(tmp_path: Path) -> None:
    rows = texts(tmp_path / "rows.jsonl", 300)
    data = {"train": [{"path": str(rows)}], "validation_fraction": 0.0, "max_length": 100, "truncation_mode": "split"}
    run = run_for("pretrain", gpt2(tmp_path / "m"), rows, tmp_path / "run", data=data)
    with pytest.raises(AlignError, match="longer than the model can take: 1 row, the longest of 100 tokens"):
        check(run)


def test_rows_past_what_a_rotary_model_was_made_for_are_named_and_trained_on(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", max_position_embeddings=48)
    rows = texts(tmp_path / "rows.jsonl", 3, 90)
    data = {"train": [{"path": str(rows)}], "validation_fraction": 0.0}
    (found,) = check(run_for("pretrain", tmp_path / "m", rows, tmp_path / "run", data=data))
    (said,) = [f for f in found.findings if "made for" in f]
    assert "rows.jsonl:2" in said and "rows.jsonl:1" not in said and "48 positions" in said


@pytest.mark.parametrize("critic", [False, True], ids=["policy", "critic"])
def test_prompts_that_leave_no_room_for_an_answer_are_named(tmp_path: Path, critic: bool) -> None:
    short, long = gpt2(tmp_path / "short", 48), gpt2(tmp_path / "long", 256)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "cat " * n}) + "\n" for n in (3, 30)))
    data = {"train": [{"path": str(rows)}], "validation_fraction": 0.0}
    laid_over: dict[str, Any] = {"data": data, "rollout": {"sampling": {"max_completion_length": 40}}}
    run = run_for("ppo", long if critic else short, rows, tmp_path / "run", **laid_over)
    if critic:
        stage = run.stages[0]
        algorithm = stage.algorithm.model_copy(update={"settings": {**stage.algorithm.settings, "critic": str(short)}})
        run = run.model_copy(update={"stages": [stage.model_copy(update={"algorithm": algorithm})]})
    with pytest.raises(AlignError, match=f"the {'critic' if critic else 'model'} has 48 positions") as caught:
        check(run)
    assert "rows.jsonl:2" in str(caught.value) and "rows.jsonl:1" not in str(caught.value)
