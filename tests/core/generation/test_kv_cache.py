"""Readers against passes without a cache, whatever rows join and leave; and the decoder's batches, which refill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from align.core.generation import kv_cache
from align.core.generation.decode import Decoder, _batches
from align.core.generation.generator_base import Request, Sample
from align.core.generation.kv_cache import CachedReader, GroupedReader, Reader, ReaderSize, can_group, open_reader
from align.schemas.run import Sampling
from tests.tiny import LLAMA, SMALL, tiny_model

FAMILIES = {
    "llama-grouped-heads": LlamaConfig(**LLAMA),
    "llama-dynamic-rope": LlamaConfig(
        **LLAMA,
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    ),
    "qwen3": Qwen3Config(**LLAMA),
    "mistral-sliding": MistralConfig(**LLAMA, sliding_window=6),
    "gemma2-softcap-sliding": Gemma2Config(**LLAMA, sliding_window=6, attn_logit_softcapping=2.0),
    "gpt2-learned-positions": GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    "gpt-oss-sinks-sliding": GptOssConfig(
        **LLAMA, sliding_window=6, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=512
    ),
}


def family(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    name, _, attention = name.partition(", ")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(FAMILIES[name])](FAMILIES[name])
        for part, parameter in model.named_parameters():
            if part.endswith("sinks"):
                torch.nn.init.normal_(parameter)
    if attention:
        model.set_attn_implementation(attention)
    return model.to(dtype).eval()


def check(network: PreTrainedModel, reader: Reader, refills: bool, tolerance: float) -> int:
    """Read random rows that join, leave and grow, and compare every logit with a pass over the row. Return how many."""
    draws = np.random.default_rng(0)
    rows: list[list[int]] = []
    compared = 0

    def same(logits_NV: torch.Tensor, of: list[list[int]]) -> int:
        for logits_V, row in zip(logits_NV, of, strict=True):
            output: Any = network(input_ids=torch.tensor([row]), use_cache=False)
            torch.testing.assert_close(logits_V, output.logits[0, -1], atol=tolerance, rtol=0)
        return len(of)

    for turn, sizes in enumerate([(3, 1, 2), (2, 1), (4,)] if refills else [(3, 1, 2)]):
        if turn:
            order = reader.keep(np.sort(draws.choice(len(rows), 3, replace=False)))
            rows = [rows[i] for i in order]
        prompts = [draws.integers(4, 320, length).astype(np.int32) for length in draws.integers(1, 12, len(sizes))]
        of_N = np.repeat(np.arange(len(sizes)), sizes)
        new = [prompts[i].tolist() for i in of_N]
        compared += same(reader.add(prompts, of_N), new)
        rows += new
        for _ in range(10):
            token_B = torch.from_numpy(draws.integers(4, 320, len(rows)))
            rows = [[*row, int(token)] for row, token in zip(rows, token_B, strict=True)]
            compared += same(reader.read(token_B), rows)
    return compared


SIZE = ReaderSize(rows=9, prompts=5, longest=12, room=32, context=512)


@pytest.mark.parametrize("shared", [True, False], ids=["shared-prompts", "copied-prompts"])
@pytest.mark.parametrize(
    "name", [*(name for name in FAMILIES if "dynamic" not in name), "gemma2-softcap-sliding, eager"]
)
@torch.no_grad()
def test_logits_are_those_of_a_pass_without_a_cache(name: str, shared: bool) -> None:
    # Norms, rotary angles and the softmax of sinks are computed in float32 by the models themselves.
    for dtype, tolerance in ((torch.float32, 5e-4), (torch.float64, 2e-5)):
        if name.startswith("gpt-oss") and dtype == torch.float64:
            continue  # its experts take no float64
        network = family(name, dtype)
        assert can_group(network)
        assert check(network, GroupedReader(network, SIZE, shared), True, tolerance) > 150


@torch.no_grad()
def test_the_readers_for_other_models_give_the_same() -> None:
    network = family("qwen3")
    assert check(network, CachedReader(network, SIZE), False, 2e-4) == 66


@pytest.mark.parametrize("fault", ["other keys", "no interface"])
def test_a_model_that_does_something_else_with_attention_keeps_its_own(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = family("qwen3")
    if fault == "no interface":
        monkeypatch.setattr(type(network), "_can_set_attn_implementation", lambda *_: False)
    else:
        own = kv_cache._GroupedLayer.attend
        monkeypatch.setattr(kv_cache._GroupedLayer, "attend", lambda *given: 1.5 * own(*given))
    assert not can_group(network) and isinstance(open_reader(network, SIZE), CachedReader)


@torch.no_grad()
def test_under_autocast_it_rounds_as_the_models_own_attention_does() -> None:
    network = family("qwen3")
    assert can_group(network)
    prompts, of_N = [np.arange(5, 12, dtype=np.int32), np.arange(5, 9, dtype=np.int32)], np.array([0, 0, 1])
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for reader in (
            GroupedReader(network, SIZE, True),
            GroupedReader(network, SIZE, False),
            CachedReader(network, SIZE),
        ):
            reader.add(prompts, of_N)
            found.append(reader.read(torch.tensor([7, 8, 9])).float())
    for logits in found[:2]:
        assert (logits - found[2]).abs().max() < 0.05 * found[2].abs().max()


# --- the decoder -----------------------------------------------------------------------------------------------------


def requests(sizes: tuple[int, ...]) -> list[Request]:
    draws = np.random.default_rng(1)
    return [
        Request(draws.integers(4, 320, draws.integers(2, 14)).astype(np.int32), tuple(range(100 * i, 100 * i + size)))
        for i, size in enumerate(sizes)
    ]


def tokens_of(groups: list[list[Sample]]) -> list[list[tuple[list[int], str]]]:
    return [[(sample.tokens.tolist(), sample.finish) for sample in group] for group in groups]


@pytest.mark.parametrize("shared", [True, False], ids=["shared-prompts", "copied-prompts"])
@pytest.mark.parametrize("name", ["llama-grouped-heads", "gemma2-softcap-sliding", "gpt2-learned-positions"])
def test_places_of_finished_rows_are_refilled_and_no_result_depends_on_it(
    name: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "shares_prompts", lambda *_: shared)
    network, ends = family(name).double(), tuple(range(3, 30))
    sampling, asked = Sampling(max_completion_length=30), requests((3, 1, 9, 2, 4, 1, 1, 5, 3))

    def generate(tokens: int) -> list[list[Sample]]:
        return Decoder(network, None, ends, 512, tokens).generate(asked, sampling)  # type: ignore[arg-type]

    joined: list[tuple[int, int]] = []
    added = GroupedReader.add

    def add(reader: GroupedReader, prompts: Any, of_N: Any) -> torch.Tensor:
        joined.append((reader._state.rows, len(of_N)))
        return added(reader, prompts, of_N)

    together = generate(100_000)
    monkeypatch.setattr(GroupedReader, "add", add)
    few = generate(6 * 44)
    assert any(running for running, _ in joined), "rows began while others went on"
    assert max(running + new for running, new in joined) <= 6
    alone = [
        [
            Decoder(network, None, ends, 512, 1).generate([Request(r.prompt, (seed,))], sampling)[0][0]  # type: ignore[arg-type]
            for seed in r.seeds
        ]
        for r in asked
    ]
    assert tokens_of(together) == tokens_of(few) == tokens_of(alone)
    assert {sample.finish for group in few for sample in group} == {"stop", "length"}
    for one, other in zip(few, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.logp, b.logp, atol=1e-6)


def test_parts_of_one_group_each_take_a_prompt_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 7 in a batch of 10 rows are cut into parts of 5 and 2, some of which run at the same time."""
    monkeypatch.setattr(kv_cache, "shares_prompts", lambda *_: True)
    network, sampling, prompts = family("llama-grouped-heads").double(), Sampling(max_completion_length=30), []
    added = GroupedReader.add

    def add(reader: GroupedReader, *given: Any) -> torch.Tensor:
        logits_NV = added(reader, *given)
        prompts.append((reader._state.prompts, reader.size.prompts))
        return logits_NV

    monkeypatch.setattr(GroupedReader, "add", add)
    draws = np.random.default_rng(3)
    asked = [
        Request(draws.integers(4, 320, 6).astype(np.int32), tuple(range(3000 + 100 * i, 3007 + 100 * i)))
        for i in range(8)
    ]
    ends = tuple(range(3, 40))
    found = Decoder(network, None, ends, 512, 10 * 36).generate(asked, sampling)  # type: ignore[arg-type]
    assert all(there <= most for there, most in prompts)
    assert tokens_of(found) == tokens_of(Decoder(network, None, ends, 512, 10**6).generate(asked, sampling))  # type: ignore[arg-type]


def test_a_group_is_told_as_soon_as_it_is_finished() -> None:
    network, finished = tiny_model(), []
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return False

    asked = requests((2, 3, 1, 4))
    groups = Decoder(network, None, tuple(range(3, 20)), 512, 200).generate(  # type: ignore[arg-type]
        asked,
        Sampling(max_completion_length=30),
        stop,
        on_group=lambda i, group: finished.append((polls, i, group)),
    )
    assert sorted(i for _, i, _ in finished) == [0, 1, 2, 3]
    assert all(group == groups[i] for _, i, group in finished)
    assert finished[0][0] < polls, "before the end"


def test_batches_hold_no_more_than_their_tokens_and_rows_of_like_length() -> None:
    draws = np.random.default_rng(0)
    asked = [Request(np.ones(n, np.int32), tuple(range(draws.integers(1, 9)))) for n in draws.integers(1, 400, 60)]
    asked.append(Request(np.ones(5, np.int32), tuple(range(500))))
    network = tiny_model()
    for tokens in (1, 500, 4000, 10**6):
        decoder = Decoder(network, None, (), 512, tokens)  # type: ignore[arg-type]
        batches = _batches(decoder, asked, 32)
        rows = [row for batch in batches for group in batch.groups for row in group]
        assert sorted(rows) == sorted((i, k) for i, request in enumerate(asked) for k in range(len(request.seeds)))
        for batch in batches:
            width = 32 + max(len(asked[group[0].request].prompt) for group in batch.groups)
            assert batch.most * width <= max(tokens, width)
            assert max(map(len, batch.groups)) <= batch.most
        assert len(batches) == 1 or tokens < 10**6


def test_a_buffer_that_a_pass_replaced_is_an_ordinary_tensor_afterwards() -> None:
    network = family("llama-dynamic-rope")
    sampling = Sampling(max_completion_length=40)
    Decoder(network, None, (), 512, 4096).generate(requests((2, 2)), sampling)  # type: ignore[arg-type]
    assert not any(buffer.is_inference() for buffer in network.buffers())
    output: Any = network(torch.arange(30)[None])
    output.logits.sum().backward()
