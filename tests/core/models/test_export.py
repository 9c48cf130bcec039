"""Exports: what plain transformers loads gives what the policy gave, and the policy is left as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, TokenSequence
from align.core.models.load_and_export import build_policy, export, export_from_state, plain_model
from align.core.models.policy import Policy, weights_hash
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model
from tests.tiny import tiny_model, tiny_tokenizer

LORA, DORA = Adapter(r=4), Adapter(type="dora", r=4)
IDS = [[5, 9, 100, 7, 3], [5, 200, 8, 9, 11, 3], [40, 41, 3]]
FILES = {
    "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip
ADAPTER_FILES = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


def rows() -> MicroBatch:
    sequences = [TokenSequence("text", np.array(ids, np.int32), np.arange(len(ids)) > 0) for ids in IDS]
    return collate([Example("rows", (s,)) for s in sequences], "padded", 0)


def trained(directory: Path, head: Any = "language", **settings: Any) -> tuple[Policy, Any]:
    """A policy after two real optimizer steps."""
    model = Model(path=str(directory), **settings)
    policy, tokenizer = build_policy(model, head, seed=1, dropout=False)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        scores = policy(rows())
        (-scores.logp_T.mean() if head == "language" else -scores.score_B.mean()).backward()
        optimizer.step()
    return policy, tokenizer


def outputs(policy: Policy) -> Tensor:
    """Log-probabilities, or scores."""
    training = policy.training
    with torch.no_grad():
        scores = policy.eval()(rows())
    policy.train(training)
    return scores.logp_T if policy.head == "language" else scores.score_B  # type: ignore[return-value]


def plainly(model: Any, head: str) -> Tensor:
    """The same by transformers alone, a row at a time, from full logits."""
    with torch.no_grad():
        logits = [model.eval()(input_ids=torch.tensor([ids])).logits[0].float() for ids in IDS]
    if head == "reward":
        return torch.cat(logits)
    pairs = zip(logits, IDS, strict=True)
    return torch.cat([x[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for x, ids in pairs])


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def load(directory: Path, head: str) -> Any:
    auto: Any = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model


@pytest.mark.parametrize("adapter", [None, LORA, DORA], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("head", ["language", "reward"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_plain_transformers_gives_what_the_policy_gave(
    tmp_path: Path, head: Any, adapter: Adapter | None, tied: bool
) -> None:
    start = tmp_path / "start"
    tiny_model(tie_word_embeddings=tied, attention_dropout=0.125).save_pretrained(start)
    tiny_tokenizer().save_pretrained(start)
    policy, tokenizer = trained(start, head, adapter=adapter)
    before, wanted = weights_hash(policy), outputs(policy)
    modes = [m.training for m in policy.modules()]
    state = torch.random.get_rng_state()
    export(policy, tokenizer, tmp_path / "export")

    assert weights_hash(policy) == before  # not a bit of the policy has moved
    assert torch.equal(outputs(policy), wanted)
    assert modes == [m.training for m in policy.modules()]
    assert torch.equal(state, torch.random.get_rng_state())

    model = load(tmp_path / "export", head)
    assert torch.allclose(plainly(model, head), wanted, atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = FILES | (ADAPTER_FILES if adapter else set())
    assert files(tmp_path / "export") == expected - ({"generation_config.json"} if head == "reward" else set())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    if head == "language":
        assert ("lm_head.weight" in load_file(tmp_path / "export" / "model.safetensors")) == (not tied)
    else:
        assert model.config.num_labels == 1
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in IDS], True, model.config.pad_token_id)
        with torch.no_grad():  # in one batch transformers must find each row's last token by itself
            assert torch.allclose(model(input_ids=padded).logits[:, 0], wanted, atol=1e-5)
    assert model.config.attention_dropout == 0.125  # off in training, but the model keeps it


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("head", ["language", "reward"])
@pytest.mark.parametrize("adapter", [None, LORA, DORA], ids=["full", "lora", "dora"])
def test_other_architectures(tmp_path: Path, architecture: str, head: Any, adapter: Adapter | None) -> None:
    """Convolutional linear layers, biases, norms that add one, soft caps, untied heads of another name."""
    config = AutoConfig.for_model(
        architecture, vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    policy, tokenizer = trained(tmp_path / "start", head, adapter=adapter)
    export(policy, tokenizer, tmp_path / "export")
    assert torch.allclose(plainly(load(tmp_path / "export", head), head), outputs(policy), atol=1e-4)


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("head", ["language", "reward"])
def test_the_adapter_itself_loads_on_its_base(tiny_model_dir: Path, tmp_path: Path, head: Any, adapter: Any) -> None:
    policy, tokenizer = trained(tiny_model_dir, head, adapter=adapter)
    export(policy, tokenizer, tmp_path / "export")
    again, _ = build_policy(Model(path=str(tmp_path / "export" / "adapter")), head, seed=0, dropout=True)
    assert torch.equal(outputs(again), outputs(policy))
    config = json.loads((tmp_path / "export" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model_dir)
    if head == "language":
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        peft_alone = PeftModel.from_pretrained(base, str(tmp_path / "export" / "adapter"))
        assert torch.allclose(plainly(peft_alone, head), outputs(policy), atol=1e-5)


def test_an_adapter_made_elsewhere_that_trains_embeddings_and_head_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    whole = ["embed_tokens", "lm_head"]
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=whole, use_rslora=True, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(tmp_path / "theirs"))
    policy, tokenizer = trained(tmp_path / "theirs")
    export(policy, tokenizer, tmp_path / "export")
    assert torch.allclose(plainly(load(tmp_path / "export", "language"), "language"), outputs(policy), atol=1e-5)
    assert not torch.equal(policy.unwrapped.get_output_embeddings().weight, base.lm_head.original_module.weight)
    again, _ = build_policy(Model(path=str(tmp_path / "export" / "adapter")), "language", seed=0, dropout=True)
    assert torch.equal(outputs(again), outputs(policy))


def test_an_adapter_whose_base_is_nowhere_on_disk_is_only_merged(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_model_dir, adapter=LORA)
    export(policy, tokenizer, tmp_path / "first")
    second, _ = trained(tmp_path / "first" / "adapter", adapter=LORA)
    export(second, tokenizer, tmp_path / "second")
    assert files(tmp_path / "second") == FILES
    assert torch.allclose(plainly(load(tmp_path / "second", "language"), "language"), outputs(second), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_type_of_the_weights_is_kept(tiny_model_dir: Path, tmp_path: Path, dtype: Any) -> None:
    policy, tokenizer = trained(tiny_model_dir, dtype=dtype, adapter=LORA)
    export(policy, tokenizer, tmp_path / "export")
    tensors = load_file(tmp_path / "export" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == dtype
    gap = plainly(load(tmp_path / "export", "language"), "language") - outputs(policy)
    assert gap.abs().max() < 0.1


def test_unchanged_tensors_are_shared_not_copied(tiny_model_dir: Path) -> None:
    policy, _ = trained(tiny_model_dir, adapter=LORA)
    merged = plain_model(policy.model)
    own = {t.data_ptr() for t in policy.parameters()}
    shared = {n for n, t in merged.named_parameters() if t.data_ptr() in own}
    assert {n for n, _ in merged.named_parameters()} - shared == {
        f"model.layers.{i}.{block}.{kind}_proj.weight"
        for i in (0, 1)
        for block, kinds in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
        for kind in kinds
    }


def overwrite(policy: Policy, size: float) -> None:
    """Give the adapter other values."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))


def test_a_merge_that_changes_the_model_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_model_dir, dtype="bfloat16", adapter=LORA)
    overwrite(policy, 3.0)  # attention so steep that rounding the sums to bfloat16 turns it elsewhere
    with pytest.raises(AlignError, match=r"outputs of up to .* moved by up to .* nothing was exported"):
        export(policy, tokenizer, tmp_path / "export")
    policy, tokenizer = trained(tiny_model_dir, dtype="float16", adapter=LORA)
    overwrite(policy, 300.0)  # sums past 65504, the largest of float16
    with pytest.raises(AlignError, match="not finite"):
        export(policy, tokenizer, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_never_reach_the_disk(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_model_dir)
    with torch.no_grad():
        policy.unwrapped.model.norm.weight[3] = float("inf")  # type: ignore[union-attr,index]
    with pytest.raises(AlignError, match=r"NaN or infinity, such as model\.norm\.weight"):
        export(policy, tokenizer, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_whole_or_absent(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tokenizer = trained(tiny_model_dir)
    export(policy, tokenizer, tmp_path / "export")
    first = (tmp_path / "export" / "model.safetensors").read_bytes()
    later, _ = trained(tiny_model_dir)
    with torch.no_grad():
        later.unwrapped.model.norm.weight.mul_(2)  # type: ignore[union-attr,operator]

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export(later, tokenizer, tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == first  # the old one is still there

    export(later, tokenizer, tmp_path / "export")  # over the old one and what was left behind
    assert (tmp_path / "export" / "model.safetensors").read_bytes() != first
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    load(tmp_path / "export", "language")


def test_the_tokenizer_and_its_template_travel(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    policy, tokenizer = trained(tiny_model_dir, chat_template=str(template))
    export(policy, tokenizer, tmp_path / "export")
    again = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == template.read_text()
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|bos|>", "<|im_end|>", "<|pad|>")


def test_a_generation_config_that_transformers_will_not_save_travels(tiny_model_dir: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(tiny_model_dir, start)
    said = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]}  # as Llama 2 ships it
    (start / "generation_config.json").write_text(json.dumps(said))
    policy, tokenizer = trained(start)
    export(policy, tokenizer, tmp_path / "export")
    written = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6 and written["top_p"] == 0.9 and written["eos_token_id"] == [2, 3]
    model = load(tmp_path / "export", "language")
    assert model.generate(torch.tensor([IDS[0]]), max_new_tokens=3).shape[1] > len(IDS[0])


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_from_a_state_dict(tiny_model_dir: Path, tmp_path: Path, adapter: Adapter | None) -> None:
    policy, _ = trained(tiny_model_dir, adapter=adapter)
    state = {n: t.clone() for n, t in policy.state_dict().items() if adapter is None or "lora_" in n}
    model = Model(path=str(tiny_model_dir), adapter=adapter)
    export_from_state(state, model, "language", tmp_path / "export")
    assert torch.allclose(plainly(load(tmp_path / "export", "language"), "language"), outputs(policy), atol=1e-5)
    name = next(n for n in state if "q_proj" in n)
    with pytest.raises(AlignError, match="do not fit"):
        export_from_state({k: v for k, v in state.items() if k != name}, model, "language", tmp_path / "less")
    with pytest.raises(AlignError, match="do not fit"):
        export_from_state(state | {name: torch.zeros(1, 2, 3)}, model, "language", tmp_path / "other")


def test_large_models_are_written_in_shards_that_load(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_model_dir)
    plain_model(policy.model).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    again, _ = build_policy(Model(path=str(tmp_path / "sharded")), "language", seed=0, dropout=True)
    assert torch.equal(outputs(again), outputs(policy))
