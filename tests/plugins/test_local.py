"""The embedded generator against transformers' own generation, and what its answers may not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from transformers import (
    PreTrainedModel,
)

from align.core.generation.decode import Decoder
from align.core.generation.generator_base import Interrupt, ModelHandle, Request, Sample, Tokens
from align.core.inference.sampler import handle_for
from align.core.models.adapter import add_adapter
from align.core.models.policy import Policy
from align.core.plugin_system.registry import registry
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Choice, Model, Sampling
from tests.plugins.sampled_models import END, FAMILIES, PROMPTS, TOKENIZER, family
from tests.tiny import tiny_model


def decoder(
    network: PreTrainedModel, tokens: int = 4096, context: int = 512, ends: tuple[int, ...] = (END,)
) -> Decoder:
    return Decoder(network, TOKENIZER, ends, context, tokens)


@torch.no_grad()
def likelihood(network: PreTrainedModel, prompt: Tokens, answer: Tokens, temperature: float = 1.0) -> np.ndarray:
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logp = (network(ids).logits / temperature).log_softmax(-1)[0, len(prompt) - 1 : -1]
    return logp.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def same(a: list[list[Sample]], b: list[list[Sample]]) -> bool:
    pairs = [(x, y) for g, h in zip(a, b, strict=True) for x, y in zip(g, h, strict=True)]
    return all(
        x.tokens.tolist() == y.tokens.tolist() and x.finish == y.finish and np.allclose(x.logp, y.logp, atol=1e-4)
        for x, y in pairs
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_those_of_transformers_and_log_probabilities_the_models(name: str) -> None:
    network = family(name)
    greedy = Sampling(max_completion_length=20, temperature=0)
    groups = decoder(network).generate([Request(prompt, (0, 1)) for prompt in PROMPTS], greedy)
    for prompt, (one, two) in zip(PROMPTS, groups, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        theirs = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        assert one.tokens.tolist() == two.tokens.tolist() == theirs[0, len(prompt) :].tolist()
        np.testing.assert_allclose(one.logp, likelihood(network, prompt, one.tokens), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "gemma2-softcap-sliding", "mamba-recurrent"])
def test_an_answer_depends_on_its_own_seed_and_on_nothing_beside_it(name: str) -> None:
    network, sampling = family(name), Sampling(max_completion_length=24, temperature=1.2)
    requests = [Request(prompt, tuple(range(10 * i, 10 * i + 3))) for i, prompt in enumerate(PROMPTS)]
    together = decoder(network).generate(requests, sampling)
    assert same(together, decoder(network).generate(requests[::-1], sampling)[::-1])
    assert same(together, decoder(network, tokens=70).generate(requests, sampling))
    alone = [
        [decoder(network, 1).generate([Request(r.prompt, (s,))], sampling)[0][0] for s in r.seeds] for r in requests
    ]
    assert same(together, alone)
    assert len({tuple(sample.tokens.tolist()) for group in together for sample in group}) > len(PROMPTS)
    for request, group in zip(requests, together, strict=True):
        for sample in group:
            np.testing.assert_allclose(sample.logp, likelihood(network, request.prompt, sample.tokens, 1.2), atol=1e-4)


def test_finish_reasons_and_limits() -> None:
    network = tiny_model()
    greedy = Sampling(max_completion_length=8, temperature=0)
    ((whole,),) = decoder(network, ends=()).generate([Request(PROMPTS[0], (0,))], greedy)
    assert (len(whole.tokens), whole.finish) == (8, "length")
    third = int(whole.tokens[2])
    first = whole.tokens.tolist().index(third) + 1
    for sampler, sampling in [
        (decoder(network, ends=(third,)), greedy),
        (decoder(network, ends=()), Sampling(max_completion_length=8, temperature=0, stop_token_ids=[third])),
    ]:
        ((ended,),) = sampler.generate([Request(PROMPTS[0], (0,))], sampling)
        assert (ended.tokens.tolist(), ended.finish) == (whole.tokens[:first].tolist(), "stop")
    # the context ends first for the longer prompt, and the shorter goes on beside it
    room = len(PROMPTS[2]) + 3
    short, long = decoder(network, ends=(), context=room).generate(
        [Request(p, (0,)) for p in (PROMPTS[0], PROMPTS[2])], greedy
    )
    assert (len(long[0].tokens), long[0].finish, len(short[0].tokens)) == (3, "length", min(8, room - len(PROMPTS[0])))
    with pytest.raises(AlignError, match=r"prompt of \d+ tokens leaves no room"):
        decoder(network, context=len(PROMPTS[2])).generate([Request(PROMPTS[2], (0,))], greedy)
    with pytest.raises(AlignError, match="empty prompt"):
        decoder(network).generate([Request(np.empty(0, np.int32), (0,))], greedy)
    assert decoder(network).generate([], greedy) == []


def test_finished_answers_in_a_context_of_learned_positions_do_not_run_over_its_end() -> None:
    network = family("gpt2-learned-positions")
    context = len(PROMPTS[2]) + 2
    requests = [Request(PROMPTS[2], (0,)), *(Request(PROMPTS[0], (i,)) for i in range(20))]
    network.transformer.wpe = nn.Embedding.from_pretrained(network.transformer.wpe.weight[:context].detach())
    groups = decoder(network, ends=(), context=context).generate(requests, Sampling(max_completion_length=40))
    assert [len(group[0].tokens) for group in groups] == [2] + [context - len(PROMPTS[0])] * 20


def test_stop_strings_are_found_over_the_borders_of_tokens_and_of_characters() -> None:
    network = tiny_model()
    free = decoder(network, ends=()).generate(
        [Request(p, (1, 2, 3, 4)) for p in PROMPTS], Sampling(max_completion_length=60)
    )
    found = 0
    for prompt, group in zip(PROMPTS, free, strict=True):
        for seed, sample in enumerate(group, 1):
            text = TOKENIZER.decode(sample.tokens[20:30].tolist(), skip_special_tokens=True)
            stop = text[3:6]
            if "\ufffd" in stop or len(stop) < 3:
                continue
            sampling = Sampling(max_completion_length=60, stop=["nowhere in it", stop])
            ((ended,),) = decoder(network, ends=()).generate([Request(prompt, (seed,))], sampling)
            said = [TOKENIZER.decode(sample.tokens[:n].tolist(), skip_special_tokens=True) for n in range(1, 61)]
            expected = next(n for n, text in enumerate(said, 1) if stop in text)
            assert (ended.tokens.tolist(), ended.finish) == (sample.tokens[:expected].tolist(), "stop")
            found += 1
    assert found > 3


def test_a_repetition_penalty_sees_prompt_and_answer_as_transformers_does() -> None:
    network = tiny_model()
    sampling = Sampling(max_completion_length=20, temperature=0, repetition_penalty=1.5)
    groups = decoder(network, ends=()).generate([Request(prompt, (0,)) for prompt in PROMPTS], sampling)
    for prompt, (sample,) in zip(PROMPTS, groups, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        settings: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.5, "eos_token_id": None}
        theirs = network.generate(ids, max_new_tokens=20, **settings)
        assert sample.tokens.tolist() == theirs[0, len(prompt) :].tolist()


def test_it_listens_and_can_be_stopped() -> None:
    on_token: dict[tuple[int, int], list[int]] = {}
    sampler, sampling = decoder(tiny_model()), Sampling(max_completion_length=12)
    requests = [Request(prompt, (1, 2)) for prompt in PROMPTS]
    groups = sampler.generate(
        requests, sampling, on_token=lambda i, k, token: on_token.setdefault((i, k), []).append(token)
    )
    assert on_token == {(i, k): s.tokens.tolist() for i, group in enumerate(groups) for k, s in enumerate(group)}
    polls = iter([False] * 5 + [True])
    with pytest.raises(Interrupt):
        sampler.generate(requests, sampling, stop=lambda: next(polls))
    assert next(polls, None) is None


@pytest.fixture
def handle(tiny_model_dir: Path) -> ModelHandle:
    return handle_for(Model(path=str(tiny_model_dir)))


def test_the_plugin_samples_for_a_directory_or_for_a_policy_in_training(handle: ModelHandle) -> None:
    assert (handle.ends, handle.context) == ((END,), 512)
    network = add_adapter(tiny_model(seed=1, attention_dropout=0.5), Adapter(r=4, lora_dropout=0.5), "language", None)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    policy = Policy(network).train()
    local = registry.build("generator", Choice(type="local", settings={"batch_tokens": 100}))
    assert local.shares_weights and local.trainable
    local.open(handle)
    requests, sampling = [Request(prompt, (1, 2)) for prompt in PROMPTS], Sampling(max_completion_length=12)
    before = local.generate(requests, sampling)
    local.sync(policy, 1)
    after = local.generate(requests, sampling)
    assert not same(before, after) and same(after, local.generate(requests, sampling)), "no dropout"
    assert policy.training and all(module.training for module in policy.modules())
    pairs = [(r.prompt, s.tokens) for r, group in zip(requests, after, strict=True) for s in group]
    for told, sample in zip(local.logp(pairs), [s for group in after for s in group], strict=True):
        np.testing.assert_allclose(told, sample.logp, atol=1e-4)
    (told,) = local.logp(pairs[:1])
    loss = policy.eval().unwrapped(torch.from_numpy(pairs[0][0].astype(np.int64))[None]).logits.sum()
    loss.backward()  # the weights are as they were: they take a gradient
    assert told.dtype == np.float32
    local.close()
    local.close()


def test_weights_that_are_split_within_a_layer_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """By tensor parallelism; what fsdp splits is sampled from (``test_sharded.py``)."""
    torch.distributed.init_process_group("gloo", init_method=f"file:{tmp_path}/group", rank=0, world_size=1)
    try:
        network = tiny_model()
        mesh = init_device_mesh("cpu", (1,))
        weight = DTensor.from_local(network.lm_head.weight.detach(), mesh, [Replicate()])
        network.lm_head.weight = nn.Parameter(weight)
        local = registry.build("generator", Choice(type="local"))
        local.open(ModelHandle(tmp_path, Model(path=str(tmp_path)), TOKENIZER, (END,), 512, Policy(network)))
        with pytest.raises(AlignError, match=r"tensor parallel(?s:.*)vllm"):
            local.generate([Request(PROMPTS[0], (0,))], Sampling())
    finally:
        torch.distributed.destroy_process_group()
