"""What an adapter trains besides its own matrices, what it leaves alone, and what could not be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align.core.data.examples import Example, TokenSequence
from align.core.models.load_and_export import build_policy, export, notes
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model
from tests.core.models.test_export import load, outputs, plainly, trained
from tests.tiny import save_tiny, tiny_tokenizer

TOKENS = {"trainable_token_indices": [5, "<|im_end|>"]}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]},
     {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}, TOKENS],
    ids=["embeddings", "head", "both", "tokens"],
)  # fmt: skip
def test_embeddings_trained_beside_the_adapter_are_exported(tmp_path: Path, tied: bool, settings: Any) -> None:
    save_tiny(tmp_path / "m", tie_word_embeddings=tied)
    policy, tokenizer = trained(tmp_path / "m", adapter=Adapter(r=2, **settings))
    plain, _ = build_policy(Model(path=str(tmp_path / "m")), "language", seed=1, dropout=False)
    with policy.model.disable_adapter():  # the reference is what the model was
        assert torch.equal(outputs(policy), outputs(plain))
    export(policy, tokenizer, tmp_path / "out")
    model = load(tmp_path / "out", "language")
    assert torch.allclose(plainly(model, "language"), outputs(policy), atol=1e-5)
    again, _ = build_policy(Model(path=str(tmp_path / "out" / "adapter")), "language", seed=0, dropout=True)
    assert torch.equal(outputs(again), outputs(policy))

    old = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    weights = [(m.get_input_embeddings().weight, m.get_output_embeddings().weight) for m in (old, model)]
    moved = [set((a != b).any(1).nonzero().flatten().tolist()) for a, b in zip(*weights, strict=True)]
    assert (weights[1][0] is weights[1][1]) == tied
    if settings is TOKENS:
        assert moved == ([{3, 5}] * 2 if tied else [{5}, {3, 5}])  # nothing follows the end token, so nothing reads it
    else:
        names = settings["modules_to_save"]
        assert [bool(rows) for rows in moved] == [tied or "embed_tokens" in names, tied or "lm_head" in names]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_half_of_a_tied_pair_is_refused_before_training(tmp_path: Path, kind: Any, target: str) -> None:
    save_tiny(tmp_path / "m", tie_word_embeddings=True)
    spec = Adapter(type=kind, r=2, target_modules=["q_proj", target])
    with pytest.raises(AlignError, match="shares its weight with") as caught:
        build_policy(Model(path=str(tmp_path / "m"), adapter=spec), "language", seed=0, dropout=False)
    assert "modules_to_save: [embed_tokens]" in caught.value.problems[0].fix


def test_an_adapter_made_elsewhere_on_half_of_a_tied_pair(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    save_tiny(tmp_path / "m", tie_word_embeddings=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    config = LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    with pytest.raises(AlignError, match="shares its weight with"):
        build_policy(Model(path=str(tmp_path / "theirs")), "language", seed=0, dropout=False)


@pytest.mark.parametrize(
    ("settings", "says", "fix"),
    [
        ({"target_modules": ["lm_head"]}, "not a plain linear layer", "modules_to_save"),
        ({"target_modules": ["q_proj", "v_prj"]}, "'v_prj' is the name of nothing", "'v_proj'"),
        ({"modules_to_save": ["embed_token"]}, "'embed_token' is the name of nothing", "'embed_tokens'"),
        ({"target_parameters": ["gate_up"]}, "'gate_up' is the name of nothing", ""),
        ({"trainable_token_indices": ["<nope>"]}, "'<nope>' is no token", "add_tokens"),
        ({"trainable_token_indices": [320]}, "320 is no token", "add_tokens"),
        (
            {"target_modules": ["embed_tokens"], "modules_to_save": ["embed_tokens"]},
            "both train model.embed_tokens",
            "one",
        ),
        ({"modules_to_save": ["lm_head"], "trainable_token_indices": [5]}, "both train lm_head", "one"),
    ],
)
def test_settings_that_would_train_nothing_or_twice(tmp_path: Path, settings: Any, says: str, fix: str) -> None:
    save_tiny(tmp_path / "m")
    with pytest.raises(AlignError, match=says) as caught:
        build_policy(Model(path=str(tmp_path / "m"), adapter=Adapter(**settings)), "language", seed=0, dropout=False)
    assert fix in caught.value.problems[0].fix


# ---- added tokens -------------------------------------------------------------------------------------------------


def with_tokens(directory: Path, names: list[str], mean: bool = True) -> Path:
    """The tiny model with tokens added as transformers adds them."""
    save_tiny(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(names)
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=mean)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def added(directory: Path, tokens: list[int], **settings: Any) -> list[str]:
    """What the notes say of added tokens for a row that holds these."""
    adapter = Adapter(r=2, **settings) if settings is not None else None
    policy, tokenizer = build_policy(Model(path=str(directory), adapter=adapter), "language", seed=0, dropout=False)
    row = Example("r:1", (TokenSequence("text", np.array(tokens, np.int32), np.arange(len(tokens)) > 0),))
    return [n.what + n.fix for n in notes(policy, tokenizer, [row]) if "added tokens" in n.what]


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "random"])
def test_added_tokens_that_nothing_trains_are_named(tmp_path: Path, mean: bool) -> None:
    directory = with_tokens(tmp_path / "m", ["<think>", "</think>", "<unused>"], mean)
    (said,) = added(directory, [5, 320, 9, 321, 3])
    assert "<think>" in said and "</think>" in said and "<unused>" not in said
    assert "embeddings and rows of the head" in said
    (said,) = added(directory, [5, 320, 9, 321, 3], trainable_token_indices=["<think>"])
    assert "'<think>'" not in said and "</think>" in said
    (said,) = added(directory, [5, 320, 3], modules_to_save=["embed_tokens"])
    assert "rows of the head" in said and "embeddings and" not in said
    assert added(directory, [5, 320, 321], trainable_token_indices=["<think>", 321]) == []
    assert added(directory, [5, 320], modules_to_save=["embed_tokens", "lm_head"]) == []
    assert added(directory, [5, 9, 3]) == []  # the model's own special tokens are trained ones


def test_added_tokens_learn_where_everything_does(tmp_path: Path) -> None:
    directory = with_tokens(tmp_path / "m", ["<think>"])
    policy, tokenizer = build_policy(Model(path=str(directory)), "language", seed=0, dropout=False)
    row = Example("r:1", (TokenSequence("text", np.array([5, 320], np.int32), np.array([False, True])),))
    assert notes(policy, tokenizer, [row]) == []


# ---- mixtures of experts ------------------------------------------------------------------------------------------


def mixture(directory: Path, kind: str) -> Path:
    config = AutoConfig.for_model(
        kind, vocab_size=320, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2,
        num_experts=2, num_experts_per_tok=1, bos_token_id=1, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["llama4_text", "gpt_oss"])
def test_fused_experts_without_an_adapter_are_named_and_can_have_one(tmp_path: Path, kind: str) -> None:
    mixture(tmp_path / "m", kind)
    policy, tokenizer = trained(tmp_path / "m", adapter=Adapter(r=2))
    (note,) = [n for n in notes(policy, tokenizer, []) if "expert" in n.what]
    assert "experts.down_proj, experts.gate_up_proj" in note.what and "target_parameters" in note.fix
    export(policy, tokenizer, tmp_path / "out")
    assert torch.allclose(plainly(load(tmp_path / "out", "language"), "language"), outputs(policy), atol=1e-5)

    fused = ["experts.down_proj", "experts.gate_up_proj"]
    policy, tokenizer = trained(tmp_path / "m", adapter=Adapter(r=2, target_parameters=fused))
    assert not [n for n in notes(policy, tokenizer, []) if "expert" in n.what]
    export(policy, tokenizer, tmp_path / "both")
    assert torch.allclose(plainly(load(tmp_path / "both", "language"), "language"), outputs(policy), atol=1e-5)


def test_experts_that_peft_adapts_by_itself_are_not_named(tmp_path: Path) -> None:
    mixture(tmp_path / "m", "qwen3_moe")
    policy, tokenizer = trained(tmp_path / "m", adapter=Adapter(r=2))
    assert any("expert" in n and "lora_A" in n for n, p in policy.named_parameters() if p.requires_grad)
    assert notes(policy, tokenizer, []) == []
    export(policy, tokenizer, tmp_path / "out")
    assert torch.allclose(plainly(load(tmp_path / "out", "language"), "language"), outputs(policy), atol=1e-5)
