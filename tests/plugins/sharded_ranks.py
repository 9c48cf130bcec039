"""Two ranks with policies that FSDP2 shards: sampling from them, and their weights as vLLM gets them.

``python -m torch.distributed.run --nproc-per-node=2 tests/plugins/sharded_ranks.py``; every check is an assertion.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from align.core.generation.generator_base import Generator, Interrupt, ModelHandle, Request, Sample
from align.core.generation.sharded import independent_passes
from align.core.models.adapter import add_adapter
from align.core.models.policy import Policy, weights_hash
from align.core.plugin_system.registry import registry
from align.plugins.generators.vllm.weights import adapter_tensors, checkpoint_tensors
from align.plugins.strategies.single_ddp_fsdp import sharding
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Choice, Model, Sampling
from tests.core.models.references import rows
from tests.plugins.sampled_models import END, PROMPTS, TOKENIZER, family
from tests.tiny import LLAMA, tiny_model

SAMPLING = Sampling(max_completion_length=9)
REQUESTS = [Request(prompt, (2 * i, 2 * i + 1)) for i, prompt in enumerate(PROMPTS)]


def adapted(network: PreTrainedModel, tokens: Sequence[int] = (), **spec: Any) -> Policy:
    """A policy with an adapter that changes its outputs; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = add_adapter(network, Adapter(r=4, **spec), "language", None, tokens)
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return Policy(made)


def mixture() -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MixtralConfig(**LLAMA, num_local_experts=4, tie_word_embeddings=False)
        return MixtralForCausalLM(config).float().eval()


def shard(policy: Policy, mesh: Any, precision: str = "32-true") -> None:
    sharding.shard(policy, mesh, precision, reshard=True, offload=False)


def opened(policy: Policy, **settings: Any) -> Generator:
    local: Generator = registry.build("generator", Choice(type="local", settings={"batch_tokens": 100} | settings))
    local.open(ModelHandle(Path(), Model(path="."), TOKENIZER, (END,), 64, policy))
    return local


def same(one: Sequence[Sequence[Sample]], other: Sequence[Sequence[Sample]]) -> bool:
    """Return True if completions and their log-probabilities are equal to the bit."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return all(np.array_equal(a.tokens, b.tokens) and np.array_equal(a.logp, b.logp) for a, b in pairs)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """The gradients of one pass, which are 0 again afterwards."""
    policy.train()
    policy(rows()).logp_T.sum().backward()
    found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    whole = {n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in found.items()}
    policy.zero_grad()
    return whole


def sampling_is_that_of_one_process(make: Callable[[], Policy], mesh: Any) -> None:
    """Each way of gathering, uneven ranks: the bits of one process on the same prompts, and training as before."""
    plain, policy = make(), make()
    shard(policy, mesh)
    alone = opened(plain).generate(REQUESTS, SAMPLING)
    mine = slice(dist.get_rank(), None, 2) if dist.get_rank() else slice(0, 1)
    expected = opened(plain).generate(REQUESTS[mine], SAMPLING)
    want = gradients(plain)
    layer = next(module for name, module in policy.named_modules() if name.endswith((".h.0", ".layers.0")))
    for gather in ("layers", "whole", "auto"):
        local = opened(policy, gather=gather)
        found = local.generate(REQUESTS[mine], SAMPLING)
        assert same(found, expected), gather
        for one, other in zip(found, alone[mine], strict=True):
            assert [a.tokens.tolist() for a in one] == [b.tokens.tolist() for b in other], gather
        with independent_passes(policy, gather):
            weight = next(layer.parameters())
            assert isinstance(weight, DTensor) == (gather == "layers")
        assert isinstance(next(layer.parameters()), DTensor)
        got = gradients(policy)
        assert got.keys() == want.keys() and len(got) > 2
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
        assert isinstance(next(layer.parameters()), DTensor), "a layer is gathered while it works, as before"


def scores_are_of_what_was_sampled(mesh: Any) -> None:
    """In 16 bits too, where FSDP2 casts what it gathers: sampling and scoring have the same weights."""
    policy = adapted(tiny_model())
    shard(policy, mesh, "bf16-mixed")
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for gather in ("layers", "whole"):
            local = opened(policy, gather=gather)
            found.append(local.generate(REQUESTS, SAMPLING))
            pairs = [(r.prompt, s.tokens) for r, group in zip(REQUESTS, found[-1], strict=True) for s in group]
            scored = local.logp(pairs)
            for told, sample in zip(scored, [s for group in found[-1] for s in group], strict=True):
                np.testing.assert_allclose(told, sample.logp, atol=0.05)
    assert same(*found)


def ranks_may_differ_in_all_they_do(mesh: Any) -> None:
    """As in a suite: other numbers of calls, of completions and of likelihoods on each rank, in one block."""
    plain, policy = tiny_model(), Policy(tiny_model())
    shard(policy, mesh)
    pairs = [(PROMPTS[1], PROMPTS[3]), (PROMPTS[2], PROMPTS[0])]
    alone, local = opened(Policy(plain)), opened(policy, gather="layers")
    with independent_passes(policy, "layers"):
        if dist.get_rank():
            assert np.allclose(local.logp(pairs)[1], alone.logp(pairs)[1], atol=1e-6)
        else:
            for number in (1, 2, 3):
                wanted = REQUESTS[:number]
                assert same(local.generate(wanted, SAMPLING), alone.generate(wanted, SAMPLING))
            assert np.allclose(local.logp(pairs)[0], alone.logp(pairs)[0], atol=1e-6)
    assert local.generate([], SAMPLING) == [], "no rank has a prompt"


def a_rank_that_stops_or_fails_ends_all(mesh: Any) -> None:
    """The others learn of it at their next pass; all can go on after it."""
    policy, rank = Policy(tiny_model()), dist.get_rank()
    shard(policy, mesh)
    local, asked = opened(policy, gather="layers"), 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return rank == 1 and asked > 3

    before = local.generate(REQUESTS, SAMPLING)
    with pytest.raises(Interrupt):
        local.generate(REQUESTS, SAMPLING, stop=stop)
    assert rank == 1 or asked < 9, "it went on sampling"
    too_long = Request(np.arange(4, 80).astype(np.int32), (1,))
    for failing in (0, 1):  # one that is busy, one that is done already
        wanted = [too_long] if rank == failing else REQUESTS[: 4 * (1 - failing)]
        with pytest.raises(AlignError if rank == failing else Interrupt):
            local.generate(wanted, SAMPLING)
    assert same(local.generate(REQUESTS, SAMPLING), before)


def vllm_gets_the_weights_of_one_process(make: Callable[[], Policy], mesh: Any) -> None:
    """The adapter by itself, and all weights with it merged: the bits of a policy that is not sharded."""
    plain, policy = make(), make()
    shard(policy, mesh)
    before = weights_hash(policy)
    policy(rows())  # what is gathered now is not what is sent
    if hasattr(policy.model, "peft_config"):
        equal(adapter_tensors(policy), adapter_tensors(plain))
    equal(dict(checkpoint_tensors(policy)), dict(checkpoint_tensors(plain)))
    assert weights_hash(policy) == before


def equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def a_rank_that_dies_in_a_pass_is_noticed(mesh: Any) -> None:
    """It cannot meet the others any more, and does not wait for them: they see it go. Ends the processes."""
    policy, rank, passes = Policy(tiny_model()), dist.get_rank(), 0
    shard(policy, mesh)
    norm = policy.unwrapped.model.norm

    def fail(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if rank == 1 and passes == 5:
            raise RuntimeError("out of memory")

    norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory" if rank else "(?i)connection|closed|reset|peer"):
        opened(policy, gather="layers").generate(REQUESTS, SAMPLING)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sampled: Sequence[Callable[[], Policy]] = (
        lambda: Policy(tiny_model(tie_word_embeddings=True)),
        lambda: adapted(tiny_model()),
        lambda: Policy(family("bloom-alibi")),  # its attention cannot be replaced, which is tried in a pass that fails
    )
    for make in sampled:
        sampling_is_that_of_one_process(make, mesh)
    scores_are_of_what_was_sampled(mesh)
    ranks_may_differ_in_all_they_do(mesh)
    a_rank_that_stops_or_fails_ends_all(mesh)
    sent: Sequence[Callable[[], Policy]] = (
        lambda: Policy(tiny_model(tie_word_embeddings=True)),
        lambda: adapted(tiny_model(tie_word_embeddings=True)),
        lambda: adapted(tiny_model(), type="dora"),
        lambda: adapted(tiny_model(), modules_to_save=["lm_head"]),
        lambda: adapted(tiny_model(), tokens=[3, 5]),
        lambda: adapted(tiny_model().to(torch.bfloat16)),
        lambda: adapted(mixture(), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]),
    )
    for make in sent:
        vllm_gets_the_weights_of_one_process(make, mesh)
    a_rank_that_dies_in_a_pass_is_noticed(mesh)


if __name__ == "__main__":
    main()
