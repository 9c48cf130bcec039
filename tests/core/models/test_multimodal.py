"""Models that read more than text: trained on text, exported whole, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from align.core.models.architecture import read_tensors, recall, tensors_of
from align.core.models.load_and_export import build_policy, export, notes
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model
from tests.core.models.test_export import load, outputs, plainly, trained
from tests.tiny import save_tiny, tiny_tokenizer

TEXT = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 3,
    "pad_token_id": 0,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_TOWER = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0],
}  # fmt: skip
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (TEXT | MROPE, QWEN_TOWER),
    "qwen3_vl": (TEXT, QWEN_TOWER),
    "qwen3_5": (TEXT | LINEAR, QWEN_TOWER),
    "gemma3": (TEXT | {"layer_types": ["sliding_attention", "full_attention"]}, TOWER),
    "llava": (TEXT | {"model_type": "llama"}, TOWER | {"model_type": "clip_vision_model"}),
    "mistral3": (TEXT | {"model_type": "mistral"}, TOWER | {"model_type": "pixtral", "head_dim": 8}),
    "smolvlm": (TEXT | {"model_type": "llama"}, TOWER),
    "internvl": (TEXT | {"model_type": "qwen2"}, TOWER | {"image_size": [28, 28], "patch_size": [14, 14]}),
    "mllama": (
        TEXT | {"cross_attention_layers": [1]},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
         "attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 64,
         "intermediate_layers_indices": [0]},
    ),
    "llama4": (
        TEXT | {"intermediate_size_mlp": 64, "num_local_experts": 2, "layer_types": None},
        TOWER | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
}  # fmt: skip
TOKENS = {"image_token_id": 10, "image_token_index": 10, "video_token_id": 11, "vision_start_token_id": 12}


def multimodal(kind: str, directory: Path) -> PreTrainedModel:
    """A tiny checkpoint of a kind of multimodal model, with what prepares its images."""
    text, tower = PARTS[kind]
    config = AutoConfig.for_model(kind, text_config=text, vision_config=tower, **TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((directory / "tokenizer_config.json").read_text()) | {"tokenizer_class": "TokenizersBackend"}
        )
    )
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return model


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", PARTS)
def test_the_original_class_loads_every_tensor_again(tmp_path: Path, kind: str, adapter: Adapter | None) -> None:
    original = multimodal(kind, tmp_path / "m")
    policy, tokenizer = trained(tmp_path / "m", adapter=adapter)
    export(policy, tokenizer, tmp_path / "out")

    before, after = tensors_of(tmp_path / "m"), tensors_of(tmp_path / "out")
    assert {n: (e.dtype, e.shape) for n, e in before.items()} == {n: (e.dtype, e.shape) for n, e in after.items()}
    old, new = read_tensors(tmp_path / "m", before), read_tensors(tmp_path / "out", after)
    seeing = [name for name in before if any(w in name for w in ("vis", "project", "connector", "mlp1"))]
    assert len(seeing) > 5 and all(torch.equal(old[name], new[name]) for name in seeing)
    assert any(not torch.equal(old[name], new[name]) for name in before)  # something was learned

    again, info = type(original).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.allclose(plainly(again, "language"), outputs(policy), atol=1e-5)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    (note,) = [n for n in notes(policy, tokenizer, []) if "rows of text do not reach" in n.what]
    assert "vis" in note.what and type(original).__name__ in note.what
    reachable = [p for n, p in policy.unwrapped.named_parameters() if p.requires_grad]
    policy.zero_grad()
    sum(x.sum() for x in (outputs_with_gradient(policy),)).backward()
    assert all(p.grad is not None for p in reachable)  # nothing is trained that has no gradient


def outputs_with_gradient(policy: Any) -> torch.Tensor:
    from tests.core.models.test_export import rows

    return policy(rows()).logp_T  # type: ignore[no-any-return]


def test_tensors_that_the_class_passes_over_in_silence_are_copied(tmp_path: Path) -> None:
    """Qwen3.5's heads for several tokens ahead: ``_keys_to_ignore_on_load_unexpected`` hides them."""
    multimodal("qwen3_5", tmp_path / "m")
    held = load_file(tmp_path / "m" / "model.safetensors")
    extra = {"mtp.fc.weight": torch.randn(4, 8), "mtp.layers.0.mlp.experts.1.up_proj.weight": torch.randn(3).bfloat16()}
    save_file(held | extra, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    policy, tokenizer = trained(tmp_path / "m")
    assert any("mtp.fc.weight" in n.what and "copied" in n.what for n in notes(policy, tokenizer, []))
    export(policy, tokenizer, tmp_path / "out")
    new = read_tensors(tmp_path / "out", tensors_of(tmp_path / "out"))
    assert set(new) == set(held) | set(extra)
    assert all(torch.equal(new[name], extra[name]) and new[name].dtype == extra[name].dtype for name in extra)
    again, _ = build_policy(Model(path=str(tmp_path / "out")), "language", seed=0, dropout=False)
    assert torch.allclose(outputs(again), outputs(policy), atol=1e-6)
    export(again, tokenizer, tmp_path / "twice")  # from shards
    assert set(tensors_of(tmp_path / "twice")) == set(new)


def test_a_base_model_s_names_lose_nothing(tmp_path: Path) -> None:
    """GPT-2's own files lack the prefix ``transformer.`` and hold the mask as a tensor."""
    config = AutoConfig.for_model("gpt2", vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).transformer.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    held = load_file(tmp_path / "m" / "model.safetensors")
    held["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(held, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    policy, tokenizer = trained(tmp_path / "m")
    assert recall(policy.unwrapped).inventory.not_loaded == ("h.0.attn.bias",)  # type: ignore[union-attr]
    export(policy, tokenizer, tmp_path / "out")
    assert torch.allclose(plainly(load_quietly(tmp_path / "out"), "language"), outputs(policy), atol=1e-5)


def load_quietly(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


def test_a_reward_model_of_a_model_that_sees(tmp_path: Path) -> None:
    multimodal("gemma3", tmp_path / "m")
    policy, tokenizer = trained(tmp_path / "m", "reward")
    export(policy, tokenizer, tmp_path / "out")
    assert {n for n in tensors_of(tmp_path / "m") if "vision" in n} <= set(tensors_of(tmp_path / "out"))
    assert torch.allclose(plainly(load(tmp_path / "out", "reward"), "reward"), outputs(policy), atol=1e-5)
    multimodal("llava", tmp_path / "n")
    with pytest.raises(AlignError, match="no sequence-classification class for llava") as caught:
        build_policy(Model(path=str(tmp_path / "n")), "reward", seed=0, dropout=False)
    assert "model_type llama" in caught.value.problems[0].fix


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("head", "make", "says"),
    [
        ("language", lambda: T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=64)),
         "an encoder with a decoder"),
        ("language", lambda: BertLMHeadModel(BertConfig(vocab_size=320, **SMALL)), "a token sees those after it"),
        ("reward", lambda: BertForSequenceClassification(BertConfig(vocab_size=320, num_labels=1, **SMALL)),
         "one score for a whole row"),
        ("language", lambda: Blip2ForConditionalGeneration(Blip2Config(
            text_config={"model_type": "opt", "vocab_size": 320, "hidden_size": 32, "ffn_dim": 64,
                         "word_embed_proj_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
            vision_config=TOWER, qformer_config=SMALL | {"vocab_size": 20, "encoder_hidden_size": 32})),
         "cannot read text alone"),
    ],
    ids=["t5", "bert", "bert-classifier", "blip2"],
)  # fmt: skip
def test_what_does_not_read_text_from_left_to_right_is_refused(tmp_path: Path, head: Any, make: Any, says: str) -> None:
    make().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(AlignError, match=says) as caught:
        build_policy(Model(path=str(tmp_path / "m")), head, seed=0, dropout=False)
    assert caught.value.problems[0].fix and str(tmp_path) in caught.value.problems[0].where


def test_an_encoder_without_a_causal_class_is_refused_with_a_reason(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    for kind, says in (("modernbert", "is an encoder"), ("clip", "no causal language model that transformers knows")):
        config = AutoConfig.for_model(kind).to_dict()
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(AlignError, match=says):
            build_policy(Model(path=str(tmp_path / "m")), "language", seed=0, dropout=False)


def test_a_decoder_made_of_an_encoder_s_layers_is_good(tmp_path: Path) -> None:
    BertLMHeadModel(BertConfig(vocab_size=320, is_decoder=True, **SMALL)).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    policy, _ = build_policy(Model(path=str(tmp_path / "m")), "language", seed=0, dropout=False)
    assert outputs(policy).isfinite().all()
