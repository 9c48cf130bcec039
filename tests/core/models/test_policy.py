"""The policy against the models' own forwards; packed rows against rows of their own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.models import policy as policy_module
from align.core.models.packing import layout_for, probe
from align.core.models.policy import Policy, decoder_layers, layer_by_layer, without_gradient_or_dropout
from align.schemas.engine import KEPT, LOGITS, TILE
from align.schemas.errors import AlignError
from tests.tiny import tiny_model

SIZE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZE),
    "llama-tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZE),
    "gemma2": Gemma2Config(**SIZE, head_dim=8, sliding_window=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SIZE, logits_scaling=4.0),
    "cohere": CohereConfig(**SIZE, logit_scale=0.25),
    "gpt2": GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        **{k: SIZE[k] for k in ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")},
    ),
}
"""Rotary positions, tied embeddings, biases, a soft cap with windows, scaled logits both ways, absolute positions."""


def build(config: PretrainedConfig, attention: str = "sdpa", head: str = "language", lora: bool = False) -> Policy:
    """A model with weights drawn from seed 0, in evaluation mode; its adapter, if any, is not zero."""
    auto = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
    config = copy.deepcopy(config)
    if head == "reward":
        config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation=attention).float()
        if lora:
            task = "CAUSAL_LM" if head == "language" else "SEQ_CLS"
            targets = ["c_attn", "c_fc"] if config.model_type == "gpt2" else "all-linear"
            settings = LoraConfig(task_type=task, r=4, target_modules=targets, init_lora_weights=False)
            model = get_peft_model(model, settings)
    return Policy(model, head).eval()  # type: ignore[arg-type]


def examples(*lengths: int, seed: int = 0) -> list[Example]:
    """Random tokens; all but the first third of a sequence is scored."""
    rng = np.random.default_rng(seed)
    return [
        Example(f"f:{i}", (TokenSequence("text", rng.integers(3, 101, n).astype(np.int32), np.arange(n) > n // 3),))
        for i, n in enumerate(lengths)
    ]


def own_logps(policy: Policy, rows: Sequence[Example]) -> Tensor:
    """Oracle: each sequence alone through the model's own forward, log_softmax of its full logits, gather."""
    parts = []
    for sequence in (s for e in rows for s in e.sequences):
        ids = torch.from_numpy(sequence.tokens.astype(np.int64))
        logp = policy.model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        parts.append(logp.gather(-1, ids[1:, None])[:, 0][torch.from_numpy(sequence.scored[1:])])
    return torch.cat(parts)


def gradients(policy: Policy, loss: Tensor) -> Tensor:
    """All gradients in one vector; those of parameters out of reach are missing, not zero."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def apart(x: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((x - expected).norm() / expected.norm())


ROWS = examples(9, 2, 31, 14, 5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_and_padded_equal_each_sequence_alone(name: str, attention: str, lora: bool) -> None:
    policy = build(CONFIGS[name], attention, lora=lora)
    expected = own_logps(policy, ROWS)
    weights = torch.linspace(-1, 2, len(expected))
    expected_gradients = gradients(policy, expected @ weights)
    for layout in ("padded", "packed"):
        micro = collate(ROWS, layout, 0)
        logp_T = policy(micro).logp_T
        torch.testing.assert_close(logp_T, expected, rtol=1e-5, atol=1e-5)
        assert apart(gradients(policy, logp_T @ weights), expected_gradients) <= 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_sequences_never_see_each_other(name: str, attention: str) -> None:
    policy = build(CONFIGS[name], attention)
    before = policy(collate(ROWS, "packed", 0)).logp_T
    for changed in range(len(ROWS)):
        others = examples(*(len(e.sequences[0]) for e in ROWS), seed=1)
        rows = [other if i == changed else row for i, (row, other) in enumerate(zip(ROWS, others, strict=True))]
        micro = collate(rows, "packed", 0)
        after = policy(micro).logp_T
        kept = micro.sequence_T != changed
        assert torch.equal(after[kept], before[kept])
        assert not torch.equal(after[~kept], before[~kept])


def test_metrics_are_those_of_the_full_logits() -> None:
    policy = build(CONFIGS["gemma2"])
    (row,) = examples(20)
    z = policy.model(input_ids=torch.from_numpy(row.sequences[0].tokens.astype(np.int64))[None]).logits[0]
    micro = collate([row], "padded", 0)
    z = z[micro.predict_T]
    scores = policy(micro)
    torch.testing.assert_close(scores.entropy_T, torch.distributions.Categorical(logits=z).entropy())
    torch.testing.assert_close(scores.logit_T, z.mean(-1))
    assert scores.correct_T.bool().tolist() == (z.argmax(-1) == micro.target_T).tolist()
    policy.metrics = False
    assert policy(micro)[1:4] == (None, None, None)


def test_temperature_divides_the_logits() -> None:
    policy = build(CONFIGS["llama"])
    hot = Policy(policy.model, temperature=2.0)
    (row,) = examples(20)
    micro = collate([row], "padded", 0)
    ids = micro.input_ids_RL
    z = policy.model(input_ids=ids).logits[0, micro.predict_T] / 2.0
    torch.testing.assert_close(hot(micro).logp_T, z.log_softmax(-1).gather(-1, micro.target_T[:, None])[:, 0])


def test_a_tail_that_is_not_known_is_refused() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + output.logits.square()
            return output

    with pytest.raises(AlignError, match="Odd changes its logits"):
        Policy(Odd(CONFIGS["llama"]))(collate(ROWS, "padded", 0))


def test_measuring_the_tail_leaves_the_random_state_alone() -> None:
    policy = Policy(tiny_model(attention_dropout=0.5)).train()
    state = torch.get_rng_state()
    assert policy.tail == (1.0, None)
    assert torch.equal(torch.get_rng_state(), state)


# --- memory


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.numel())
        return result


def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS, "cpu", 8 * 3000)
    monkeypatch.setitem(KEPT, "cpu", 4 * 20 * 3000)
    policy = Policy(tiny_model(vocab_size=3000))
    micro = collate(examples(200, 150), "padded", 0)
    with Largest() as seen:
        policy(micro).logp_T.sum().backward()
    weights = 3000 * 32
    assert seen.numel == weights
    assert len(micro.target_T) * 3000 > 6 * weights


def test_logits_are_made_twice_only_past_the_budget_or_under_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS, "cpu", 8 * 3000)
    monkeypatch.setitem(TILE, "cpu", 3 * 3000)
    micro = collate(examples(40, 35), "padded", 0)
    scored = len(micro.target_T)
    found: list[Tensor] = []
    for budget, checkpointing, again in ((scored, False, 0), (10, False, scored - 10), (scored, True, scored)):
        monkeypatch.setitem(KEPT, "cpu", 4 * budget * 3000)
        policy = Policy(tiny_model(vocab_size=3000))
        if checkpointing:
            policy.unwrapped.gradient_checkpointing_enable({"use_reentrant": False})
        logp_T = policy.train()(micro).logp_T
        with Made(3000) as made:
            logp_T.sum().backward()
        assert made.rows == again
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert apart(found[1], found[0]) < 1e-5 and apart(found[2], found[0]) < 1e-5


class Made(TorchDispatchMode):
    """The rows of logits that matrix products write."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.out and result.shape[-1] == self.vocabulary:
            self.rows += len(result)
        return result


# --- micro-batches without tokens


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("head", ["language", "reward"])
def test_an_empty_micro_batch_gives_every_parameter_a_zero_gradient(head: str, lora: bool) -> None:
    policy = build(CONFIGS["llama"], head=head, lora=lora)
    micro = collate([], "packed", 0, like=ROWS)
    scores = policy(micro)
    batch = policy.batch(micro, scores)
    assert scores.logp_T.shape == (0,) and batch.sequences == 0
    assert scores.anchor.item() == 0.0
    found = gradients(policy, scores.anchor)
    assert found.numel() > 0 and not found.any()


def test_a_step_may_add_the_anchor_to_any_loss() -> None:
    policy = build(CONFIGS["llama"])
    scores = policy(collate(ROWS, "padded", 0))
    loss = -scores.logp_T.sum()
    assert (loss + scores.anchor).item() == loss.item()
    with_anchor = gradients(policy, loss + scores.anchor)
    assert torch.equal(with_anchor, gradients(policy, -policy(collate(ROWS, "padded", 0)).logp_T.sum()))


# --- reward head


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_scores_are_the_classifiers_own(name: str, lora: bool) -> None:
    policy = build(CONFIGS[name], head="reward", lora=lora)
    micro = collate(ROWS, "padded", 0)
    own = policy.model(input_ids=micro.input_ids_RL, attention_mask=micro.attention_mask_RL).logits[:, 0]
    scores = policy(micro)
    assert torch.equal(scores.score_B, own)
    assert scores.logp_T.isnan().all() and len(scores.logp_T) == len(micro.target_T)
    packed = policy(collate(ROWS, "packed", 0)).score_B
    torch.testing.assert_close(packed, own, rtol=1e-5, atol=1e-5)
    assert apart(gradients(policy, packed.square().sum()), gradients(policy, own.square().sum())) <= 1e-5
    assert probe(policy, ROWS)


# --- heads that peft or the model make different


def test_a_head_saved_with_the_adapter_is_the_one_that_learns() -> None:
    base = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    policy = Policy(get_peft_model(base, settings)).eval()
    with torch.no_grad():
        policy.unwrapped.lm_head.modules_to_save["default"].weight.mul_(1.5)
    logp_T = policy(collate(ROWS, "padded", 0)).logp_T
    torch.testing.assert_close(logp_T, own_logps(policy, ROWS), rtol=1e-5, atol=1e-5)
    logp_T.sum().backward()
    assert policy.unwrapped.lm_head.modules_to_save["default"].weight.grad.any()
    assert policy.unwrapped.lm_head.original_module.weight.grad is None
    with policy.model.disable_adapter():
        assert not torch.allclose(policy(collate(ROWS, "padded", 0)).logp_T, logp_T)


def test_heads_that_cannot_be_used_are_refused() -> None:
    base = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"]))
    with pytest.raises(AlignError, match="leave its head out"):
        Policy(adapted)
    with pytest.raises(AlignError, match="the head of LlamaModel is NoneType"):
        Policy(AutoModel.from_config(CONFIGS["llama"]))
    two = AutoModelForSequenceClassification.from_config(LlamaConfig(**SIZE, num_labels=2))
    with pytest.raises(AlignError, match="gives 2 scores"):
        Policy(two, "reward")


def test_the_model_is_left_as_it_was() -> None:
    policy = build(CONFIGS["llama"])
    head = policy.unwrapped.lm_head
    policy(collate(ROWS, "padded", 0))
    assert "forward" not in vars(head)
    assert set(policy.state_dict()) == {f"model.{name}" for name in policy.model.state_dict()}
    unknown = Example("f:0", (TokenSequence("text", np.array([5, 5000], np.int32), np.array([False, True])),))
    with pytest.raises(IndexError):
        policy(collate([unknown], "padded", 0))
    assert "forward" not in vars(head)


def test_gradient_checkpointing_and_autocast_keep_the_scores() -> None:
    policy = build(CONFIGS["llama"]).train()
    micro = collate(ROWS, "packed", 0)
    plain = policy(micro).logp_T
    expected = gradients(policy, plain.sum())
    policy.unwrapped.gradient_checkpointing_enable()
    again = policy(micro).logp_T
    assert torch.equal(plain, again)
    assert torch.equal(gradients(policy, again.sum()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = policy(micro).logp_T
    assert rounded.dtype == torch.float32
    assert (rounded - plain).abs().max() < 0.2


# --- the probe and the layout

UNPACKABLE = {
    "takes no positions": MambaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.15, pad_token_id=0
    ),
    "state runs along the row": Qwen3NextConfig(
        **SIZE,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "positions do not reach its mask": FalconConfig(
        **{k: v for k, v in SIZE.items() if k not in ("intermediate_size", "num_key_value_heads")}
    ),
}


@pytest.mark.parametrize("config", UNPACKABLE.values(), ids=UNPACKABLE)
def test_a_model_that_cannot_be_packed_is_found_out_and_runs_padded(
    config: PretrainedConfig, caplog: pytest.LogCaptureFixture
) -> None:
    policy = build(config, "eager")  # what all three have
    assert not probe(policy, ROWS)
    with caplog.at_level(logging.WARNING):
        assert layout_for(policy, "cpu", "packed", ROWS) == "padded"
    assert f"{type(policy.unwrapped).__name__} cannot keep packed sequences apart" in caplog.text
    expected = own_logps(policy, ROWS)
    logp_T = policy(collate(ROWS, "padded", 0)).logp_T
    torch.testing.assert_close(logp_T, expected, rtol=1e-5, atol=1e-5)
    assert apart(gradients(policy, logp_T.sum()), gradients(policy, expected.sum())) <= 1e-5


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], examples(2, 2)], ids=["five", "one", "short"])
def test_the_probe_passes_what_can_be_packed_and_leaves_no_trace(rows: list[Example]) -> None:
    policy = Policy(tiny_model(attention_dropout=0.5)).train()
    state = torch.get_rng_state()
    assert probe(policy, rows)
    assert policy.training and policy.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.grad is not None for p in policy.parameters())


def test_the_layout_is_packed_only_where_a_kernel_serves() -> None:
    policy = build(CONFIGS["llama"])
    assert layout_for(policy, "cpu", "auto", ROWS) == "padded"
    assert layout_for(policy, "cuda", "auto", ROWS) == "padded"
    assert layout_for(policy, "cpu", "packed", ROWS) == "packed"
    assert layout_for(policy, "cuda", "padded", ROWS) == "padded"
    flex = build(CONFIGS["llama"], "flex_attention")
    assert layout_for(flex, "cuda", "auto", ROWS) == "packed"
    assert flex.unwrapped.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("lora", [False, True])
def test_a_policy_that_fits_no_device_has_one_layer_there_at_a_time(
    lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moves are noted in place of made: here is no other device. A layer leaves before the next one comes."""
    policy = build(tiny_model().config, lora=lora)
    rows = examples(12, 9)
    expected, layers = own_logps(policy, rows), decoder_layers(policy)
    moves: list[tuple[int, str]] = []
    there = torch.device("cpu")
    monkeypatch.setattr(policy_module, "_moved", lambda layer, device: moves.append((layers.index(layer), str(device))))
    monkeypatch.setattr(policy_module, "_to_cpu", lambda layer, *_: moves.append((layers.index(layer), "back")))
    with layer_by_layer(policy, there), without_gradient_or_dropout(policy):
        found = policy(collate(rows, "padded", 0)).logp_T
    assert len(layers) == policy.unwrapped.config.num_hidden_layers
    assert moves[: 2 * len(layers)] == [(n, what) for n in range(len(layers)) for what in ("cpu", "back")]
    torch.testing.assert_close(found, expected)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
