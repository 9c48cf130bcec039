"""Sequences that share the computation of their prefix: the same numbers as each by itself, or the model keeps out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import BloomConfig, MambaConfig, PretrainedConfig, Qwen3NextConfig, Starcoder2Config
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sliding_window_overlay

from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.data.step_plan import Layout, plan_micro_batches
from align.core.models import tree_mask as masks
from align.core.models.packing import can_share, layout_for, probe, worth_sharing
from align.core.models.policy import Policy, set_dropout
from tests.core.models.test_packing import KINDS, policy_of, rows
from tests.core.models.test_policy import CONFIGS, SIZE, build
from tests.tiny import tiny_model

SHARED: tuple[Layout, ...] = ("padded_shared", "packed_shared")
WINDOWED = Starcoder2Config(**SIZE, sliding_window=9, norm_epsilon=1e-5)
"""Every layer attends to nine tokens, and nothing is computed in float32: float64 is exact to its own rounding."""


def sequence(role: str, tokens: Sequence[int], scored: Sequence[int]) -> TokenSequence:
    return TokenSequence(role, np.array(tokens, np.int32), np.array(scored, bool))


def group(rng: np.random.Generator, prompt: int, answers: Sequence[int], turns: int = 1) -> list[TokenSequence]:
    """Sequences that begin alike and part after some turns; answers before that are scored in each of them."""
    tokens, scored = list(rng.integers(3, 101, prompt)), [False] * prompt
    for _ in range(turns - 1):
        tokens += list(rng.integers(3, 101, 4))
        scored += [True] * 3 + [False]
    made = []
    for place, answer in enumerate(answers):
        own = [*tokens, *rng.integers(3, 101, answer)]
        made.append(sequence(("chosen", "rejected")[place % 2], own, [*scored, *[True] * answer]))
    return made


def forest(seed: int, groups: Sequence[tuple[int, Sequence[int], int]], pairs: bool, twice: bool) -> list[Example]:
    """Groups of (prompt, answers, turns): as pairs, or each sequence an example of its own."""
    rng = np.random.default_rng(seed)
    examples = []
    for number, (prompt, answers, turns) in enumerate(groups):
        made = group(rng, prompt, answers, turns)
        if twice:
            made.append(made[0])  # the same sequence again
        cut = range(0, len(made) - 1, 2) if pairs else range(len(made))
        examples += [Example(f"f:{number}", tuple(made[i : i + 1 + pairs])) for i in cut]
    order = rng.permutation(len(examples))
    return [examples[i] for i in order]


def computed(policy: Policy, examples: Sequence[Example], layout: Layout) -> tuple[list[Tensor], Tensor]:
    """Scores of every token or sequence, and the gradient of a sum in which no two weigh the same."""
    policy.zero_grad()
    micro = collate(examples, layout, 0)
    scores = policy(micro)
    values = [v for v in (scores.score_B, scores.value_T) if v is not None]
    if policy.head == "language":
        values = [v for v in (scores.logp_T, scores.entropy_T, scores.correct_T, scores.logit_T) if v is not None]
    learned = values[0]
    (learned * torch.linspace(0.5, 1.5, len(learned), dtype=learned.dtype)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return [v.detach() for v in values], gradient


def assert_same(policy: Policy, examples: Sequence[Example], tolerance: float, layouts: Sequence[Layout]) -> None:
    plain, gradient = computed(policy, examples, "padded")
    for layout in layouts:
        shared, own = computed(policy, examples, layout)
        for a, b in zip(plain, shared, strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), layout
        assert float((gradient - own).norm()) <= tolerance * float(gradient.norm()), layout


def shares(examples: Sequence[Example]) -> bool:
    return collate(examples, "packed_shared", 0).subtree_end_RL is not None


EXACT = {"gpt2": CONFIGS["gpt2"], "windowed": WINDOWED}
POLICIES = {name: build(config).double() for name, config in EXACT.items()}
GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 99), pairs=st.booleans(), twice=st.booleans())
def test_any_forest_gives_the_numbers_of_its_sequences(
    name: str, groups: list[tuple[int, list[int], int]], seed: int, pairs: bool, twice: bool
) -> None:
    if examples := forest(seed, groups, pairs, twice):
        assert_same(POLICIES[name], examples, 1e-9, SHARED)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*CONFIGS, "windowed"])
def test_float32_to_its_rounding(kind: str, attention: str) -> None:
    policy = build({**CONFIGS, "windowed": WINDOWED}[kind], attention)
    examples = forest(1, [(20, [5, 9, 4, 12], 2), (7, [3, 3], 1), (1, [4], 1)], False, False)
    assert shares(examples)
    assert_same(policy, examples, 2e-5, SHARED)


@pytest.mark.parametrize("head", ["reward", "value"])
def test_other_heads(head: Any) -> None:
    policy = build(CONFIGS["llama"], head="reward")
    policy.head = head
    examples = forest(2, [(20, [5, 9], 2), (8, [3, 6], 1)], True, False)
    assert shares(examples)
    assert_same(policy, examples, 2e-5, SHARED)


@pytest.mark.parametrize("how", ["adapter", "checkpointing", "temperature"])
def test_what_runs_around_the_layers(how: str) -> None:
    policy = build(CONFIGS["llama"], lora=how == "adapter")
    if how == "checkpointing":
        policy.unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
    if how == "temperature":
        policy.temperature = 0.7
    assert_same(policy, forest(3, [(20, [5, 9, 7], 1)], False, False), 2e-5, SHARED)


def test_autocast_to_the_rounding_of_16_bits() -> None:
    policy = build(CONFIGS["llama"])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(policy, forest(3, [(20, [5, 9, 7], 1)], False, False), 5e-2, SHARED)


def test_the_toys_of_the_law_share() -> None:
    """So that ``check_algorithm`` tries its algorithms with shared prefixes, and not only the layouts' names."""
    from align.testing.toys import LENGTHS, toy_examples

    assert shares(toy_examples("preference", LENGTHS))


def test_a_row_by_hand() -> None:
    """The tree of the docstring of ``batch``, a sequence that shares nothing beside it."""
    one = Example("f:1", (sequence("chosen", [5, 6, 7, 8], [0, 0, 1, 1]), sequence("rejected", [5, 6, 9], [0, 1, 1])))
    other = Example("f:2", (sequence("chosen", [4, 3], [0, 1]),))
    packed = collate([one, other], "packed_shared", 0)
    assert packed.input_ids_RL.tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert packed.position_ids_RL.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert packed.subtree_end_RL is not None
    assert packed.subtree_end_RL.tolist() == [[5, 5, 4, 4, 5, 7, 7]]
    assert packed.target_T.tolist() == [7, 8, 6, 9, 3]
    assert packed.predict_T.tolist() == [1, 2, 0, 1, 5]
    assert packed.last_B.tolist() == [3, 4, 6]
    padded = collate([one, other], "padded_shared", 0)
    assert padded.input_ids_RL.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert padded.position_ids_RL.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert padded.subtree_end_RL is not None
    assert padded.subtree_end_RL.tolist() == [[5, 5, 4, 4, 5], [2, 2, 3, 4, 5]]
    assert padded.predict_T.tolist() == [1, 2, 0, 1, 5]
    assert padded.last_B.tolist() == [3, 4, 6]


def test_nothing_shared_is_the_plain_layout() -> None:
    examples = forest(4, [(5, [3], 1), (6, [2], 1)], False, False)
    layouts: list[tuple[Layout, Layout]] = [("padded_shared", "padded"), ("packed_shared", "packed")]
    for shared, plain in layouts:
        one, other = collate(examples, shared, 0), collate(examples, plain, 0)
        assert one.subtree_end_RL is None
        assert torch.equal(one.input_ids_RL, other.input_ids_RL)
        assert (one.attention_mask_RL is None) == (other.attention_mask_RL is None)


# --- the mask


def on_paths(position: Sequence[int], parent: Sequence[int], window: int) -> list[list[bool]]:
    """Oracle: from each token up to the root, as far as the window reaches."""
    mask = [[False] * len(parent) for _ in parent]
    for query in range(len(parent)):
        key = query
        while key >= 0 and position[query] - position[key] < window:
            mask[query][key] = True
            key = parent[key]
    return mask


@pytest.mark.parametrize("window", [2, 3, 99])
def test_the_rule_of_a_mask_follows_the_paths_of_a_tree(window: int) -> None:
    """Evaluated index by index too, as flex attention does where it makes its blocks."""
    position, parent = [0, 1, 2, 3, 2, 3, 0], [-1, 0, 1, 2, 1, 4, -1]
    end = [6, 6, 4, 4, 6, 6, 7]

    def rule(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return causal_mask_function(batch, head, query, key) & sliding_window_overlay(window)(batch, head, query, key)

    attends = masks._along_paths(masks._Rows(torch.tensor([position]), torch.tensor([end])), rule)
    found = create_mask(attends, 1, 1, len(position), len(position), device="cpu")
    assert found[0, 0].tolist() == on_paths(position, parent, window)


def test_all_layers_take_one_mask_of_numbers() -> None:
    """Booleans would be made numbers in every layer, and each kept for backward."""
    policy, seen = build(CONFIGS["llama"]), list[Any]()
    assert policy.tail.scale == 1.0  # measured by a pass of its own, the first time
    for layer in policy.unwrapped.model.layers:
        layer.register_forward_pre_hook(lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True)
    policy(collate(forest(3, [(9, [5, 4], 1)], False, False), "padded_shared", 0))
    assert len(seen) == 2 and seen[0] is seen[1] and seen[0].dtype == torch.float32


def test_other_models_and_threads_keep_their_own_masks() -> None:
    policy, other = build(CONFIGS["llama"]), build(CONFIGS["qwen2"])
    assert policy.tail.scale == 1.0  # measured by a pass of its own, the first time
    examples = forest(3, [(9, [5, 4], 1)], False, False)
    row = examples[:1]
    with torch.no_grad():
        before = other(collate(row, "padded", 0)).logp_T
        found = list[Tensor]()

        def elsewhere() -> None:
            with torch.no_grad():
                found.append(other(collate(row, "padded", 0)).logp_T)

        def hook(*_: Any) -> None:  # in the middle of a pass over a tree
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

        policy.unwrapped.model.embed_tokens.register_forward_hook(hook)
        policy(collate(examples, "padded_shared", 0))
        found.append(other(collate(row, "padded", 0)).logp_T)
    assert len(found) == 2 and all(torch.equal(before, each) for each in found)
    assert set(masks.IMPLEMENTATIONS) <= set(ALL_MASK_ATTENTION_FUNCTIONS)


# --- which models can


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", SHARED)
def test_the_verdict_is_that_of_trees_which_reach_past_every_window(kind: str, layout: Layout) -> None:
    """Chunks of Llama 4 and windows are counted by position; GPT-Neo makes its masks by index, and keeps out."""
    rng = np.random.default_rng(0)
    start = rng.integers(4, 300, 30)
    tokens = [[*start[:n], *rng.integers(4, 300, 40 - i)] for i, n in enumerate((30, 30, 11))]
    examples = [Example("f", (sequence("text", each, [0] + [1] * (len(each) - 1)),)) for each in tokens]
    policy = policy_of(kind, 20)
    assert shares(examples)
    with torch.no_grad():
        together = policy(collate(examples, layout, 0)).logp_T
        alone = torch.cat([policy(collate([e], "padded", 0)).logp_T for e in examples])
    truth = torch.allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert truth == (kind != "gpt_neo")
    for size in (20, 256):
        tried = policy_of(kind, size)
        before, state = tried.unwrapped.config.to_json_string(), torch.random.get_rng_state()
        assert probe(tried, rows(70, 12, 5, 90), layout=layout) == truth, size
        assert tried.unwrapped.config.to_json_string() == before
        assert torch.equal(state, torch.random.get_rng_state())


UNABLE: dict[str, PretrainedConfig] = {
    "mamba": MambaConfig(vocab_size=101, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=0),
    "bloom": BloomConfig(vocab_size=101, hidden_size=32, n_layer=2, n_head=4),
    "qwen3-next": Qwen3NextConfig(
        **SIZE, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNABLE)
def test_a_model_that_cannot_computes_each_by_itself_and_says_so_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy, examples = build(UNABLE[name], "eager"), forest(5, [(20, [5, 5], 1)], False, False)
    with caplog.at_level(logging.WARNING, "align"):
        assert layout_for(policy, "cpu", "auto", examples, share=True) == "padded"
    (warning,) = [r.getMessage() for r in caplog.records if "prefix" in r.getMessage()]
    assert warning.startswith(type(policy.unwrapped).__name__)


def test_a_critic_that_cannot_keeps_the_policy_out() -> None:
    policy = Policy(tiny_model())
    assert layout_for(policy, "cpu", "auto", rows(40, 30), share=True) == "padded_shared"
    assert layout_for(policy, "cpu", "packed", rows(40, 30), share=True) == "packed_shared"
    assert layout_for(policy, "cpu", "auto", rows(40, 30)) == "padded"
    critic = build(UNABLE["mamba"], "eager")
    assert layout_for(policy, "cpu", "auto", rows(40, 30), share=True, critic=critic) == "padded"


def test_not_under_dropout_nor_with_flash_attention(caplog: pytest.LogCaptureFixture) -> None:
    """Dropout in the prefix would be the same for all its sequences. Both are choices, not faults: no warning."""
    policy = Policy(tiny_model(attention_dropout=0.1))
    assert not can_share(policy, rows(40, 30), 0, "padded_shared")
    set_dropout(policy, False)
    assert can_share(policy, rows(40, 30), 0, "padded_shared")
    policy.unwrapped.config._attn_implementation = "flash_attention_2"
    assert not can_share(policy, rows(40, 30), 0, "padded_shared")
    assert not caplog.records


def test_a_model_is_tried_where_rows_begin_alike() -> None:
    assert worth_sharing(forest(5, [(20, [5, 5], 1)], True, False))
    assert not worth_sharing(rows(40, 30, 20))
    assert not worth_sharing([])


def test_the_plan_and_its_trees_reach_the_batch() -> None:
    """Planned and laid out as in training: one row a group, and positions of a prompt once."""
    examples = forest(6, [(40, [5, 6, 7, 8], 1), (30, [4, 4, 4], 1)], False, False)
    (micros,) = plan_micro_batches(examples, 1, 4096, None, "padded_shared")
    batches = [collate([examples[i] for i in m.examples], "padded_shared", 0, trees=m.trees) for m in micros]
    assert sum(len(batch.input_ids_RL) for batch in batches) == 2
    assert sum(int((batch.position_ids_RL == 39).sum()) for batch in batches) == 1


def test_what_the_plan_keeps_apart_stays_apart() -> None:
    """A batch looks for no trees of its own, whose rows might be wider than the plan's limit allows."""
    examples = forest(6, [(40, [5, 6], 1)], False, False)
    assert shares(examples)
    for layout in SHARED:
        assert collate(examples, layout, 0, trees=()).subtree_end_RL is None
