"""Loading: what is asked for, complete, and nothing run or unpickled on the way; adapters; dropout; tokenizers."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, TokenSequence
from align.core.models.load_and_export import build_policy, export, load_tokenizer, resolve_model_path
from align.core.models.policy import set_dropout, weights_hash
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model
from tests.tiny import tiny_model, tiny_tokenizer


def rows() -> MicroBatch:
    tokens = [[5, 9, 100, 7, 3], [5, 200, 8, 3]]
    scored = [[0, 0, 1, 1, 1], [0, 1, 1, 1]]
    sequences = [
        TokenSequence("completion", np.array(t, np.int32), np.array(s, bool))
        for t, s in zip(tokens, scored, strict=True)
    ]
    return collate([Example("rows:1", (sequences[0],)), Example("rows:2", (sequences[1],))], "padded", 0)


def build(directory: Path, head: Any = "language", seed: int = 0, dropout: bool = True, **settings: Any) -> Any:
    return build_policy(Model(path=str(directory), **settings), head, seed=seed, dropout=dropout)


def copied(directory: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The model with its tensors changed."""
    shutil.copytree(directory, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_policy_has_the_directory_s_weights_and_leaves_the_generator_alone(tiny_model_dir: Path) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    policy, tokenizer = build(tiny_model_dir, adapter=Adapter())
    assert torch.equal(before, torch.random.get_rng_state())
    assert policy.training
    plain, _ = build(tiny_model_dir)
    assert weights_hash(plain.model) == weights_hash(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_model_dir).get_vocab()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_attention(tiny_model_dir: Path, dtype: Any) -> None:
    policy, _ = build(tiny_model_dir, dtype=dtype, attn_implementation="eager")
    assert {p.dtype for p in policy.parameters()} == {getattr(torch, dtype)}
    assert policy.unwrapped.config._attn_implementation == "eager"


def test_flash_attention_that_is_not_there_is_said(tiny_model_dir: Path) -> None:
    with pytest.raises(AlignError, match=r"(?i)flash"):
        build(tiny_model_dir, attn_implementation="flash_attention_2")


# ---- where the files are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./nothing/here", "does not exist"),
        ("/no/such/place", "does not exist"),
        ("a/b/c", "does not exist"),
        ("some-owner/some-model", "hub cannot be reached"),
        ("bad name!", "possible hub id"),
    ],
)
def test_a_model_that_is_nowhere(path: str, says: str) -> None:
    with pytest.raises(AlignError, match=says) as caught:
        resolve_model_path(path)
    assert caught.value.problems[0].where == f"model.path: {path}"
    assert caught.value.problems[0].fix


def test_a_hub_id_is_found_in_the_cache_when_offline(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--some-owner--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_model_dir, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    policy, _ = build_policy(Model(path="some-owner/some-model", adapter=Adapter()), "language", seed=0, dropout=True)
    assert policy.model.active_peft_config.base_model_name_or_path == "some-owner/some-model"


def test_a_directory_has_no_revisions(tiny_model_dir: Path) -> None:
    with pytest.raises(AlignError, match="has no revisions"):
        build(tiny_model_dir, revision="main")


def test_an_adapter_finds_its_base_beside_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = adapter_directory(tiny_model_dir, tmp_path)
    wanted = build(directory)[0](rows()).logp_T
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    assert torch.equal(build(directory)[0](rows()).logp_T, wanted)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(AlignError, match=r"hub cannot be reached|does not exist|possible hub id"):
        build(directory)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(AlignError, match="is a file"):
        resolve_model_path(str(tmp_path / "model.gguf"))


# ---- what is never loaded -----------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return (open, ("exploded", "w"))


def test_pickled_weights_are_refused_unopened(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb()}, directory / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignError, match=r"pytorch_model\.bin, a pickle") as caught:
        build(directory)
    assert "convert" in caught.value.problems[0].fix
    assert not (tmp_path / "exploded").exists()


def test_an_adapter_s_pickle_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = adapter_directory(tiny_model_dir, tmp_path)
    torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(AlignError, match=r"adapter_model\.bin"):
        build(directory)


def test_code_beside_the_weights_is_not_run_and_nobody_is_asked(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    def asked(*_: Any) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)
    with pytest.raises(AlignError, match="needs code that came with it") as caught:
        build(directory)
    assert "trust_remote_code" in caught.value.problems[0].fix
    assert not (tmp_path / "ran").exists()


# ---- complete or not at all ---------------------------------------------------------------------------------------


def test_missing_weights_are_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_model_dir, tmp_path / "model", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(AlignError, match=r"it lacks lm_head\.weight"):
        build(directory)


def test_weights_without_a_place_are_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    more = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(64, 32) for i in range(2, 7)}
    directory = copied(tiny_model_dir, tmp_path / "model", lambda tensors: tensors.update(more))
    with pytest.raises(AlignError, match=r"it also holds model\.layers\.2\.mlp\.up_proj\.weight, .* and 2 more"):
        build(directory)


def test_weights_of_another_shape_and_damaged_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    wide = {"model.norm.weight": torch.ones(33)}
    with pytest.raises(AlignError, match="cannot be loaded"):
        build(copied(tiny_model_dir, tmp_path / "wide", lambda tensors: tensors.update(wide)))
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(AlignError, match="cannot be loaded"):
        build(cut)


def test_tied_embeddings_need_no_head_on_disk(tmp_path: Path, tiny_model_dir: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    policy, _ = build(tmp_path / "tied")
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight


def test_a_reward_model_is_no_language_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = build(tiny_model_dir, "reward")
    export(policy, tokenizer, tmp_path / "reward")
    with pytest.raises(AlignError, match=r"it lacks lm_head\.weight; it also holds score\.weight"):
        build(tmp_path / "reward")


# ---- reward heads -------------------------------------------------------------------------------------------------


def test_a_new_reward_head_follows_from_the_seed(tiny_model_dir: Path) -> None:
    def head(seed: int, **settings: Any) -> torch.Tensor:
        return build(tiny_model_dir, "reward", seed, **settings)[0].model.score.weight.detach().float()

    torch.manual_seed(1)
    first = head(3)
    torch.manual_seed(2)
    assert torch.equal(first, head(3))
    assert not torch.equal(first, head(4))
    assert first.shape == (1, 32)
    assert torch.allclose(first, head(3, dtype="bfloat16"), rtol=0.01)
    # drawn from N(0, initializer_range), 0.1 in the tiny model: 32 numbers lie within 3.5 deviations of the mean
    assert 0.05 < float(first.std()) < 0.15 and float(first.abs().max()) < 0.35


def test_a_reward_head_that_is_there_is_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = build(tiny_model_dir, "reward", seed=1)
    export(policy, tokenizer, tmp_path / "reward")
    again, _ = build(tmp_path / "reward", "reward", seed=2)
    assert weights_hash(again) == weights_hash(policy)


def test_a_classifier_of_three_classes_is_no_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model_dir, num_labels=3)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "three")
    with pytest.raises(AlignError, match="model cannot be loaded"):
        build(tmp_path / "three", "reward")


# ---- adapters -----------------------------------------------------------------------------------------------------


def adapter_directory(base: Path, place: Path, kind: Any = "lora", head: Any = "language") -> Path:
    """A trained adapter as peft saves it."""
    policy, _ = build(base, head, adapter=Adapter(type=kind, r=4))
    disturb(policy)
    policy.model.save_pretrained(str(place / "adapter"))
    return place / "adapter"


def disturb(policy: Any) -> None:
    """Give every trainable parameter another value."""
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_covers_all_linear_layers_but_the_head_and_changes_nothing(
    tiny_model_dir: Path, kind: Any
) -> None:
    plain, _ = build(tiny_model_dir)
    policy, _ = build(tiny_model_dir, adapter=Adapter(type=kind, r=4, lora_alpha=8))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trained} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert len(trained) == 2 * 7 * (2 if kind == "lora" else 3)
    assert torch.allclose(policy(rows()).logp_T, plain(rows()).logp_T, atol=1e-6)


def test_an_adapter_s_settings_are_used(tiny_model_dir: Path) -> None:
    policy, _ = build(tiny_model_dir, adapter=Adapter(r=4, lora_alpha=12, lora_dropout=0.5, target_modules=["q_proj"]))
    layer = policy.unwrapped.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (4, 32)
    assert layer.scaling["default"] == 12 / 4
    assert layer.lora_dropout["default"].p == 0.5
    assert sum(p.requires_grad for p in policy.parameters()) == 4


def test_unknown_targets_are_answered_with_the_known(tiny_model_dir: Path) -> None:
    with pytest.raises(AlignError, match="down_proj, gate_proj, k_proj"):
        build(tiny_model_dir, adapter=Adapter(target_modules=["query"]))


def test_the_same_seed_is_the_same_adapter(tiny_model_dir: Path) -> None:
    hashes = [weights_hash(build(tiny_model_dir, seed=s, adapter=Adapter())[0]) for s in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_reward_head_is_trained_beside_the_adapter(tiny_model_dir: Path) -> None:
    policy, _ = build(tiny_model_dir, "reward", adapter=Adapter(r=4))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert "model.base_model.model.score.modules_to_save.default.weight" in trained
    assert len(trained) == 2 * 7 * 2 + 1


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("head", ["language", "reward"])
def test_an_adapter_is_trained_on(tiny_model_dir: Path, tmp_path: Path, kind: Any, head: Any) -> None:
    directory = adapter_directory(tiny_model_dir, tmp_path, kind, head)
    policy, tokenizer = build(directory, head, seed=9)
    saved = load_file(directory / "adapter_model.safetensors")
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) == len(saved) == 2 * 7 * (2 if kind == "lora" else 3) + (head == "reward")
    for name, parameter in trained.items():
        key = name.removeprefix("model.").replace(".default", "").replace(".modules_to_save", "")
        key = key if key in saved else key.removesuffix(".weight")
        assert torch.equal(parameter, saved[key]), name
    assert tokenizer.eos_token == "<|im_end|>"  # the base's


def test_a_new_adapter_upon_an_old_one_starts_from_their_sum(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = adapter_directory(tiny_model_dir, tmp_path)
    continued, _ = build(directory)
    policy, _ = build(directory, adapter=Adapter(r=2))
    assert {p.shape[0] for n, p in policy.named_parameters() if "lora_A" in n} == {2}
    assert torch.allclose(policy(rows()).logp_T, continued(rows()).logp_T, atol=1e-5)
    with policy.model.disable_adapter():
        assert torch.allclose(policy(rows()).logp_T, continued(rows()).logp_T, atol=1e-5)


def test_adapters_that_do_not_fit(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = adapter_directory(tiny_model_dir, tmp_path)
    with pytest.raises(AlignError, match="needed: LORA for SEQ_CLS"):
        build(directory, "reward")
    tensors = load_file(directory / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, directory / "adapter_model.safetensors")
    with pytest.raises(AlignError, match="1 tensors missing or left over"):
        build(directory)
    save_file(tensors | {name: torch.zeros(3, 3)}, directory / "adapter_model.safetensors")
    with pytest.raises(AlignError, match="does not fit its base model"):
        build(directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "UNHEARD_OF"}))
    with pytest.raises(AlignError, match="the adapter's config cannot be loaded"):
        build(directory)
    (directory / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(AlignError, match="does not say which model"):
        build(directory)


def test_quantised_bases_say_what_they_need(tiny_model_dir: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(AlignError, match=r"needs bitsandbytes|needs a CUDA GPU") as caught:
        build(tiny_model_dir, adapter=Adapter(quantize="nf4"))
    assert "leave quantize out" in caught.value.problems[0].fix
    with pytest.raises(AlignError, match="cannot be merged into a quantised base"):
        build(adapter_directory(tiny_model_dir, tmp_path), adapter=Adapter(quantize="int8"))


# ---- gradient checkpointing and dropout ---------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, Adapter(r=4)])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tiny_model_dir: Path, adapter: Any) -> None:
    gradients, calls = [], []
    for on in (False, True):
        policy, _ = build(tiny_model_dir, gradient_checkpointing=on, adapter=adapter)
        disturb(policy)
        layer = policy.unwrapped.model.layers[0].self_attn
        policy(rows())  # the very first pass measures the model's tail too
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        calls.clear()
        policy(rows()).logp_T.sum().backward()
        assert len(calls) == (2 if on else 1)
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0 or "lora_A" in name, name
        assert torch.equal(gradient, gradients[1][name]), name


CONFIGS = {
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32, "layerdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5, "new_decoder_architecture": False},
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_dropout_off_and_on_again(architecture: str) -> None:
    config = AutoConfig.for_model(
        architecture, vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **CONFIGS[architecture],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    told, ids = config.to_json_string(), torch.arange(4, 20)[None]

    def output() -> torch.Tensor:
        return model(input_ids=ids).logits.detach()

    assert not torch.equal(output(), output())
    set_dropout(model, False)
    state = torch.random.get_rng_state()
    assert torch.equal(output(), output())
    if architecture != "opt":  # it draws for layerdrop whatever the rate
        assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(output(), model.eval()(input_ids=ids).logits)
    set_dropout(model.train(), True)
    assert not torch.equal(output(), output())
    assert config.to_json_string() == told


def test_an_adapter_s_dropout_is_its_own(tmp_path: Path, tiny_model_dir: Path) -> None:
    tiny_model(attention_dropout=0.5).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "m")
    policy, _ = build(tmp_path / "m", dropout=False, adapter=Adapter(lora_dropout=0.25))
    attention = policy.unwrapped.model.layers[0].self_attn
    assert attention.attention_dropout == 0.0
    assert attention.q_proj.lora_dropout["default"].p == 0.25


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def with_specials(directory: Path, to: Path, **specials: Any) -> Path:
    """The tiny model with its tokenizer's special tokens named otherwise (None: not at all)."""
    shutil.copytree(directory, to)
    config = json.loads((to / "tokenizer_config.json").read_text())
    (to / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in (config | specials).items() if v}))
    return to


@pytest.mark.parametrize("head", ["language", "reward"])
def test_a_padding_token_is_kept_and_told_to_the_model(tiny_model_dir: Path, head: Any) -> None:
    policy, tokenizer = build(tiny_model_dir, head)
    assert tokenizer.pad_token == "<|pad|>"
    assert policy.model.config.pad_token_id == 0


def test_padding_is_chosen_among_the_tokens_that_are_there(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = with_specials(tiny_model_dir, tmp_path / "m", pad_token=None)
    policy, tokenizer = build(directory)
    assert tokenizer.pad_token == "<|pad|>"  # a special token whose name says padding
    assert len(tokenizer) == 320 and policy.model.get_input_embeddings().weight.shape[0] == 320


def rename_pad(directory: Path, to: str) -> None:
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace("<|pad|>", to))
    path = directory / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|pad|>", to))


def test_padding_for_want_of_anything_better(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = with_specials(tiny_model_dir, tmp_path / "m", pad_token=None)
    rename_pad(directory, "<|other|>")
    assert load_tokenizer(Model(path=str(directory))).pad_token == "<|im_end|>"  # the end token
    assert load_tokenizer(Model(path=str(directory)), "reward").pad_token == "<|bos|>"  # which no sequence ends with
    directory = with_specials(directory, tmp_path / "n", unk_token="<|other|>")
    assert load_tokenizer(Model(path=str(directory))).pad_token == "<|other|>"  # the unknown token
    directory = with_specials(directory, tmp_path / "o", unk_token=None, bos_token="<|im_end|>")
    with pytest.raises(AlignError, match="no token to pad with"):
        load_tokenizer(Model(path=str(directory)), "reward")


def test_padding_that_is_the_end_token(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = with_specials(tiny_model_dir, tmp_path / "m", pad_token="<|im_end|>")
    assert load_tokenizer(Model(path=str(directory))).pad_token == "<|im_end|>"
    assert load_tokenizer(Model(path=str(directory)), "reward").pad_token == "<|pad|>"


def test_padding_keeps_no_token_from_learning(tiny_model_dir: Path, tmp_path: Path) -> None:
    tiny_model(pad_token_id=3).save_pretrained(tmp_path / "m")  # the end token, as many models are published
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").get_input_embeddings().padding_idx == 3
    policy, _ = build(with_specials(tmp_path / "m", tmp_path / "n", pad_token="<|im_end|>"))
    ids = np.array([5, 3, 9, 3], np.int32)
    sequence = TokenSequence("text", ids, np.array([False, True, True, True]))
    policy(collate([Example("rows:1", (sequence,))], "padded", 3)).logp_T.sum().backward()
    assert policy.unwrapped.get_input_embeddings().weight.grad[3].abs().sum() > 0


def test_ids_without_embedding_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    tiny_model(vocab_size=300).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "small")
    with pytest.raises(AlignError, match="ids up to 319, the model has embeddings for 300 tokens"):
        build(tmp_path / "small")
    tiny_model(vocab_size=384).save_pretrained(tmp_path / "large")  # rounded up for speed: no harm
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "large")
    build(tmp_path / "large")


def test_a_chat_template_from_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = load_tokenizer(Model(path=str(tiny_model_dir), chat_template=str(tmp_path / "t.jinja")))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    with pytest.raises(AlignError, match="cannot be read") as caught:
        load_tokenizer(Model(path=str(tiny_model_dir), chat_template=str(tmp_path / "none.jinja")))
    assert caught.value.problems[0].where.startswith("model.chat_template")


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(AlignError, match="the tokenizer cannot be loaded"):
        build(tmp_path / "bare")
