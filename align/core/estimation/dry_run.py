"""Dry run: a stage's step and its sampling with fake tensors (shapes without numbers), to count the bytes of memory.

The model is made from its config alone, without weights and without a GPU. The code that runs is the engine's own:
policy, log-probabilities, the algorithm's loss, backward, clipping, AdamW. Scratch memory in kernels is not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from align.core.algorithm.contract import Algorithm
from align.core.data.batch import MicroBatch
from align.core.data.examples import Example
from align.core.data.step_plan import FORWARD, Layout
from align.core.engine import module as engine
from align.core.engine.module import AlignModule
from align.core.engine.steps import MicroBatcher, StepBatch
from align.core.estimation.batches import Planned, measures
from align.core.estimation.memory_tracker import MemoryTracker
from align.core.generation.decode import draw_tokens
from align.core.generation.kv_cache import ReaderSize, can_cache, open_reader
from align.core.models import reference as references
from align.core.models.architecture import choose_family, quiet, read_config, resolve_model_path
from align.core.models.policy import Policy, Tail, set_dropout, without_gradient_or_dropout
from align.core.models.reference import Precomputed, ReferenceModel, make_reference
from align.core.util.error_line import first_line
from align.schemas.engine import KEPT, LOGITS, MICRO_TOKENS, TILE
from align.schemas.errors import AlignError
from align.schemas.run import Stage


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes by component at the peak of each phase (``training``, ``generation``)."""

    phases: dict[str, dict[str, float]]

    def total(self, phase: str) -> float:
        """Return the sum of all components of a phase, in bytes."""
        return sum(self.phases[phase].values())


def dry_run(
    stage: Stage, algorithm: Algorithm, planned: Planned, kind: str = "cpu", world: int = 1, layout: Layout = "padded"
) -> Counted:
    """Count the bytes that a stage needs on one device.

    kind: ``cpu`` or ``cuda``, which differ in the size of a chunk of logits. world: number of devices that share a
    step, each with the whole model. Raises AlignError for quantised models, and for those whose forward needs values.
    """
    if stage.model.adapter is not None and stage.model.adapter.quantize is not None:
        raise AlignError(
            "cannot be run dry: its kernels want real weights on a GPU",
            "estimate without --dry-run, or leave quantize out",
            where=f"{stage.name}: model.adapter.quantize",
        )
    dry = FakeTensorMode(allow_non_fake_inputs=True)
    dropout = algorithm.dropout if stage.train.dropout is None else stage.train.dropout
    try:
        with _without_numbers(kind):
            policy, critic = build(stage, algorithm.head, dry, dropout), None
            if algorithm.critic is not None:
                critic = build(stage, "reward", dry, False)
                critic.head = "value"
            limit = stage.train.micro_batch_tokens or MICRO_TOKENS[kind]
            batcher = MicroBatcher(algorithm, stage.train, layout, 0, limit, 0, world, FORWARD[kind])
            return count(stage, algorithm, policy, critic, batcher, planned, MemoryTracker(dry))
    except (RuntimeError, NotImplementedError) as error:  # an operation that needs numbers: a router of experts
        raise AlignError(
            f"cannot be run dry: {first_line(error)}", "estimate without --dry-run", where=f"{stage.name}: model.path"
        ) from error


def build(stage: Stage, head: Any, dry: FakeTensorMode, dropout: bool) -> Policy:
    """Return the policy as ``build_policy`` makes it, but from a config alone and with fake tensors."""
    model = stage.model
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    config = read_config(directory, model)
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.attn_implementation != "auto":
        options["attn_implementation"] = model.attn_implementation
    if head == "reward":
        config.num_labels = 1
    auto = choose_family(config, head, directory)
    if model.adapter is not None:
        from align.core.models.adapter import add_adapter
    with quiet(), torch.device("meta"):
        network = auto.from_config(config, **options, trust_remote_code=model.trust_remote_code)
        network.get_input_embeddings().padding_idx = None
        whole = network
        if model.adapter is not None:
            # Memory depends on the number of tokens only, and a tokenizer for their ids may be missing.
            tokens = range(len(set(model.adapter.trainable_token_indices)))
            network = add_adapter(network, model.adapter, head, None, tokens)
        set_dropout(network, dropout)
        if model.gradient_checkpointing:
            whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if stage.train.precision == "bf16-true":
            network = network.to(torch.bfloat16)
    with dry:
        _lay_down(network)
    made = Policy(network, head).train()
    if stage.rollout is not None:
        made.temperature = stage.rollout.sampling.temperature or 1.0
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    made.__dict__["tail"] = Tail(1.0, cap)  # overrides the cached property, which would run the model for values
    return made


def _lay_down(network: nn.Module) -> None:
    """Replace every tensor of a network on the meta device by a fake one on the CPU; shared tensors stay shared.

    The network is made on the meta device first, because peft cannot make adapters for fake tensors.
    """
    made: dict[int, Any] = {}
    for module in network.modules():
        held: Any = [module._parameters, module._buffers]
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = made.setdefault(id(tensor), _real(tensor))


def _real(tensor: Tensor) -> Tensor:
    fresh = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(fresh, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh


def count(
    stage: Stage,
    algorithm: Algorithm,
    policy: Policy,
    critic: Policy | None,
    batcher: MicroBatcher,
    planned: Planned,
    tracker: MemoryTracker,
) -> Counted:
    """Run two optimizer steps, with sampling between them, and return the bytes at the peaks.

    The first step makes the optimizer's state; the second is measured.
    """
    networks = [network for network in (policy, critic) if network is not None]
    weights = tracker.enter(held_tensors(policy))
    of_critic = 0 if critic is None else tracker.enter(held_tensors(critic))
    phases: dict[str, dict[str, float]] = {}
    with tracker:
        reference, copied = _reference(stage, algorithm, policy, tracker)
        module = _Module(stage, policy, algorithm, reference, 2, critic=critic)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=batcher.world_size,
            global_step=0,
            strategy=SimpleNamespace(backward=lambda loss, _: loss.backward()),
        )
        optimizer = module.configure_optimizers()["optimizer"]
        tracker.watch_gradients(parameter for network in networks for parameter in network.parameters())
        step = batcher.step(0, [_with_reference(e, reference) for e in planned.examples])
        state = 0
        if planned.examples:
            before = tracker.live
            optimizer_step(module, step, optimizer, stage)
            state = tracker.live - before - tracker.gradients
        fixed = {"weights": weights, "critic": of_critic, "reference": copied, "optimizer": state}
        if planned.batches.answers:
            tracker.start()
            cache = _answer(policy, planned, stage)
            with torch.no_grad(), _autocast(stage):
                for micro in step.micros:
                    _read([policy] * measures(algorithm) + [critic] * (critic is not None), reference, micro)
            phases["generation"] = _parts(tracker, {**fixed, "kv_cache": cache}, "activations")
        if planned.examples:
            tracker.start()
            optimizer_step(module, step, optimizer, stage)
            phases["training"] = _parts(tracker, fixed, "activations")
    return Counted(phases)


class _Module(AlignModule):
    """The engine's module without the check for non-finite losses: fake ones have no value."""

    def _refuse_step(self) -> None:
        return


def _with_reference(example: Example, reference: ReferenceModel | None) -> Example:
    """Return an example with reference log-probabilities if they would be precomputed."""
    if not isinstance(reference, Precomputed):
        return example
    sequences = []
    for sequence in example.sequences:
        ref_logp = np.zeros(int(sequence.scored.sum()), np.float32)
        sequences.append(replace(sequence, ref_logp=ref_logp))
    return replace(example, sequences=tuple(sequences))


def _parts(tracker: MemoryTracker, fixed: dict[str, int], rest: str) -> dict[str, float]:
    left = tracker.peak - sum(fixed.values()) - tracker.at_peak
    parts = {**fixed, "gradients": tracker.at_peak, rest: left}
    return {name: float(size) for name, size in parts.items() if size}


def optimizer_step(
    module: AlignModule, step: StepBatch, optimizer: torch.optim.Optimizer, stage: Stage, device: str = "cpu"
) -> None:
    """Run one step in the order of Lightning's automatic optimisation."""
    with _autocast(stage, device, cached=False):
        loss = module.training_step(step, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    del loss
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer)
    optimizer.step()


@torch.no_grad()
def _answer(policy: Policy, planned: Planned, stage: Stage) -> int:
    """Sample the first and the last token of the longest completions, and return the bytes of their cache.

    The tokens between need no other memory: the cache has its final size from the start.
    """
    assert stage.rollout is not None
    sizes, network = planned.batches, policy.unwrapped
    if not can_cache(network):
        return 0
    # Lengths differ, so that attention gets a mask, as it will with real prompts.
    prompts = [np.zeros(max(1, sizes.prompt - place % 2), np.int32) for place in range(sizes.prompts)]
    of_B = np.arange(sizes.answers) // -(-sizes.answers // sizes.prompts)
    with _autocast(stage), without_gradient_or_dropout(network):
        context = sizes.prompt + sizes.answer
        reader = open_reader(network, ReaderSize(sizes.answers, sizes.prompts, sizes.prompt, sizes.answer, context))
        numbers = torch.zeros(sizes.answers, dtype=torch.float64)
        token_B, _ = draw_tokens(reader.add(prompts, of_B), stage.rollout.sampling, numbers)
        reader.skip(sizes.answer - 2)
        logits_BV = reader.read(token_B)
        draw_tokens(logits_BV, stage.rollout.sampling, numbers)
        return reader.nbytes()


def _read(networks: Sequence[Policy | None], reference: ReferenceModel | None, micro: MicroBatch) -> None:
    """Run the passes that score completions before training on them."""
    for network in networks:
        if network is not None:
            with without_gradient_or_dropout(network):
                network(micro)
    if reference is not None:
        reference.logp(micro)


def _reference(
    stage: Stage, algorithm: Algorithm, policy: Policy, tracker: MemoryTracker
) -> tuple[ReferenceModel | None, int]:
    if not algorithm.uses_reference:
        return None, 0
    before = tracker.live
    return make_reference(
        stage.reference, policy, stage, known_ahead=algorithm.reference_known_ahead
    ), tracker.live - before


def held_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a network."""
    yield from network.parameters()
    yield from network.buffers()


def _autocast(stage: Stage, device: str = "cpu", cached: bool = True) -> Any:
    """Return the stage's autocast context.

    cached: True keeps 16-bit copies of weights between operations. Lightning switches that off around a training step.
    """
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(stage.train.precision)
    return nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=cached)


@contextmanager
def _without_numbers(kind: str) -> Iterator[None]:
    """Use the sizes of logits of another kind of device, and ask for no values: of weights' hash, of metrics."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with (
            patch.object(references, "tensors_hash", lambda _: ""),
            patch.object(engine, "gather", lambda table: np.ones((1, *table.shape))),
            patch.dict(LOGITS, cpu=LOGITS[kind]),
            patch.dict(TILE, cpu=TILE[kind]),
            patch.dict(KEPT, cpu=KEPT[kind]),
        ):
            yield
    finally:
        log.setLevel(level)
