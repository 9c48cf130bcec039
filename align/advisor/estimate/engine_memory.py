"""Memory of align's own engine on one device, by component, at the fullest instant of each phase.

P parameters of which T are trained, W bytes of a weight, A what a micro-batch keeps (``activations``), H its logits in
chunks, V h parameters of the head. Fixed: weights W P, AdamW's moments 2 W T, the reference, the critic's own.

    training     of the second and later micro-batches of a step   gradients W T + A + H + the head's new gradient
                 of a step's only one, before and after backward   A + H + head's gradient;   gradients W T
    generation   gradients of the step before, W T, and the largest of: reading the prompts, the answers' cache,
                 measuring what was answered

The gradients of a step stay until the next begins, hence during generation too. Under fsdp weights, gradients and
moments are split; a layer is whole while it works, and embeddings and head throughout; so are their gradients, with a
copy of them in 32 bits, until they are reduced. DistributedDataParallel keeps gradients a second time, in buckets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from align.advisor.estimate import activations
from align.advisor.estimate.activations import Types, types
from align.advisor.estimate.memory_formulas import BASE, NF4
from align.advisor.estimate.model_shape import ModelShape
from align.schemas.engine import KEPT, LOGITS, SHARE_FROM, SHARED_NUMBERS, TILE, Batches, Micro, Needs
from align.schemas.run import Stage

Parts = dict[str, float]

OFFLOADED = ("weights", "adapter", "critic", "optimizer")
"""The parts that are in the host's memory under ``fsdp`` with ``offload``; gradients are too."""


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """The layout of a stage's networks: bytes of a number, rank of the adapter (0: none), 4-bit base, devices, split.

    eager: attention in plain operations, which keep their square. shards: devices that a weight is split over, 0 for
    all. reshard: a layer that is done is gathered again for its backward pass. offload: states are in the host's
    memory.
    """

    kind: Types
    rank: int
    quantised: str | None
    devices: int
    split: bool
    checkpointing: bool
    accelerator: str
    eager: bool = False
    shards: int = 0
    reshard: bool = True
    offload: bool = False

    @property
    def share(self) -> int:
        """Devices that share one copy of the states."""
        return (self.shards or self.devices) if self.split else 1

    @property
    def no_kernel(self) -> bool:
        """Return whether sdpa has no kernel for heads that share keys: on a GPU in float32."""
        return self.accelerator == "cuda" and self.kind.compute == 4


def layout_of(
    stage: Stage, accelerator: str, devices: int, strategy: str | None = None, nodes: int = 1
) -> MemoryLayout:
    """Return the layout that a run file sets. strategy: one instead of its own (``ddp``, ``fsdp``).

    devices: in all of the ``nodes``.
    Under fsdp mixed precision casts the weights as they are gathered: all that is computed is in 16 bits.
    """
    model, declared = stage.model, stage.devices.strategy
    name = strategy or declared.type
    settings = declared.settings if declared.type == name else {}
    split, kind = name == "fsdp" and devices > 1, types(model.dtype, stage.train.precision)
    if split and kind.mixed:
        kind = replace(kind, residual=kind.compute, mixed=False)
    return MemoryLayout(
        kind=kind,
        rank=0 if model.adapter is None else model.adapter.r,
        quantised=None if model.adapter is None else model.adapter.quantize,
        devices=devices,
        split=split,
        checkpointing=model.gradient_checkpointing,
        accelerator=accelerator,
        eager=model.attn_implementation == "eager",
        shards={"all": 0, "node": devices // nodes}.get(size := settings.get("shard_size", "all"), size),
        reshard=bool(settings.get("reshard_after_forward", True)),
        offload=split and accelerator == "cuda" and bool(settings.get("offload", False)),
    )


def stage_memory(
    stage: Stage, needs: Needs, shape: ModelShape, how: MemoryLayout, batches: Batches
) -> dict[str, Parts]:
    """Return bytes by component for ``training`` and, for an online stage, ``generation``."""
    micros = batches.micros or (Micro(1, 1, 1),)
    own = networks(stage, needs, shape, how)
    phases: dict[str, Parts] = {}
    if needs.learns:
        phases["training"] = {**own, **training(needs, shape, how, micros)}
    if needs.online:
        phases["generation"] = {**own, **generation(needs, shape, how, micros, batches)}
    base = {"base": BASE} if how.accelerator == "cuda" else {}
    return {phase: {k: v for k, v in {**parts, **base}.items() if v} for phase, parts in phases.items()}


def networks(stage: Stage, needs: Needs, shape: ModelShape, how: MemoryLayout) -> Parts:
    """Return bytes that are held all the time: weights, moments, reference, critic; gradients are the phases'."""
    share = how.share
    language = needs.head == "language"
    each = trained(shape, how, language)
    parts = {"weights": weights(shape, how, language) / share, "optimizer": 2 * each / share if needs.learns else 0.0}
    if how.rank:
        parts["adapter"] = each / share
    if how.split:
        parts["gathered"] = gathered(shape, how)
        if needs.critic:
            parts["gathered"] += how.kind.compute * shape.embedding  # its root has embeddings and a head of one row
    kind = stage.reference.type
    copies = kind in ("copy", "moving-average", "adapter-snapshot") or (
        kind == "auto" and not how.rank and not needs.ahead
    )
    if needs.reference and copies:
        parts["reference"] = each / share
    if needs.critic:
        critic = trained(shape, how, language=False)
        parts["critic"] = (weights(shape, how, language=False) + (critic if how.rank else 0)) / share
        parts["optimizer"] += 2 * critic / share
    if how.offload:
        parts = {name: size for name, size in parts.items() if name not in OFFLOADED}
    return parts


def offloaded(stage: Stage, needs: Needs, shape: ModelShape, how: MemoryLayout) -> float:
    """Return the bytes of the host's memory that each process's states take where they are offloaded, else 0."""
    if not how.offload:
        return 0.0
    held = networks(stage, needs, shape, replace(how, offload=False))
    gradients = held["optimizer"] / 2
    return gradients + sum(size for name, size in held.items() if name in OFFLOADED)


def footprint(needs: Needs, shape: ModelShape, how: MemoryLayout) -> float:
    """Bytes of one replica: weights, and for what is trained a gradient and two moments."""
    language = needs.head == "language"
    kinds = [language] + [False] * needs.critic
    times = 4 if how.rank else 3  # an adapter is not among the weights
    return sum(weights(shape, how, kind) + times * trained(shape, how, kind) for kind in kinds)


def parameters(shape: ModelShape, language: bool) -> int:
    """Return P; a reward or value model has a head of one row in place of the vocabulary's."""
    return shape.params if language else shape.params - (0 if shape.tied else shape.embedding) + shape.hidden


def weights(shape: ModelShape, how: MemoryLayout, language: bool) -> float:
    """Bytes of the weights without an adapter: W P, or with a quantised base 0.516 (nf4) or 1 of the linears."""
    if how.quantised is None:
        return float(how.kind.weight * parameters(shape, language))
    each = NF4 if how.quantised == "nf4" else 1.0
    return each * shape.linears + how.kind.weight * (parameters(shape, language) - shape.linears)


def trained(shape: ModelShape, how: MemoryLayout, language: bool) -> float:
    """Return bytes of the trained weights, and so of their gradient; an adapter's are float32 on a base in 16 bits."""
    if how.rank:
        return float(how.kind.adapter * (shape.lora(how.rank) + (0 if language else shape.hidden)))
    return float(how.kind.weight * parameters(shape, language))


def gathered(shape: ModelShape, how: MemoryLayout) -> float:
    """Return bytes that fsdp gathers at a time: two layers, embeddings and head, in the type of computing.

    Without ``reshard`` a layer that is done stays gathered until its backward pass.
    """
    layers = 2 if how.reshard else shape.layers
    return float(how.kind.compute * (layers * shape.layer + root(shape)))


def root(shape: ModelShape) -> int:
    """Return the parameters that belong to no layer: embeddings, and a head of its own. Fsdp gathers them as one."""
    return (1 if shape.tied else 2) * shape.embedding


def reduced(how: MemoryLayout, count: int) -> float:
    """Return the bytes that fsdp needs to reduce so many gradients: whole ones, and a copy in 32 bits or more."""
    return float((how.kind.compute + max(4, how.kind.compute)) * count)


def whole_copy(shape: ModelShape, how: MemoryLayout) -> float:
    """Return bytes of all weights in the type of computing: what ``local`` gathers to sample where they are split."""
    adapter = how.kind.compute * shape.lora(how.rank) if how.rank else 0.0
    return float(min(how.kind.weight, how.kind.compute) * parameters(shape, language=True)) + adapter


def gathered_state(needs: Needs, shape: ModelShape, how: MemoryLayout) -> float:
    """Return bytes of a checkpoint that rank 0 gathers in its host's memory: what is trained, and two moments of it."""
    language = needs.head == "language"
    kinds = [language] + [False] * needs.critic
    return sum(3 * trained(shape, how, kind) for kind in kinds)


def kept_tokens(shape: ModelShape, how: MemoryLayout, micro: Micro) -> int:
    """Return the number of tokens whose logits' slope [V] a training pass keeps for backward: see ``KEPT``."""
    if how.rank or how.checkpointing:
        return 0
    return min(micro.scored, KEPT[how.accelerator] // (how.kind.compute * shape.vocab))


def at_a_time(most: int, shape: ModelShape, tokens: int) -> float:
    """Return the numbers of a chunk or tile of so many logits, when there are so many tokens."""
    return shape.vocab * float(max(1, min(tokens, most // shape.vocab)))


def logits(shape: ModelShape, how: MemoryLayout, micro: Micro, trains: bool = True) -> float:
    """Bytes of the head's forward pass: what it keeps, one chunk in the type of computing, and what a tile takes.

    A tile has a float32 copy in 16 bits, and in training its probabilities in float32; the head is cast for them.
    """
    kept = kept_tokens(shape, how, micro) if trains else 0
    rest = micro.scored - kept
    chunk = at_a_time(LOGITS[how.accelerator], shape, rest) if rest else 0.0
    tile = min(at_a_time(TILE[how.accelerator], shape, micro.scored), max(chunk, float(kept * shape.vocab)))
    copies = (how.kind.compute == 2) + trains
    return how.kind.compute * (kept * shape.vocab + chunk) + 4.0 * copies * tile + head_cast(shape, how)


def head_cast(shape: ModelShape, how: MemoryLayout) -> float:
    """Bytes of the head in 16 bits, under autocast of float32 weights."""
    return 2.0 * shape.embedding if how.kind.mixed and how.kind.weight == 4 else 0.0


def logits_back(shape: ModelShape, how: MemoryLayout, micro: Micro) -> float:
    """Return bytes of the head's backward pass, where it learns, in addition to its gradient in float32.

    What forward kept, and a chunk of the rest; in 16 bits also a tile in float32, or later the product that is added
    to the gradient.
    """
    kept = kept_tokens(shape, how, micro)
    rest = micro.scored - kept
    chunk = at_a_time(LOGITS[how.accelerator], shape, rest) if rest else 0.0
    held = how.kind.compute * (kept * shape.vocab + chunk)
    if how.kind.compute == 4:
        return held
    tile = min(chunk, at_a_time(TILE[how.accelerator], shape, micro.scored))
    return held + max(2.0 * shape.embedding, 4.0 * tile) + head_cast(shape, how)


def training(needs: Needs, shape: ModelShape, how: MemoryLayout, micros: tuple[Micro, ...]) -> Parts:
    """Return gradients, activations and logits at the fullest instant of a step."""
    share = how.share
    language = needs.head == "language"
    kind, each = how.kind, trained(shape, how, language)
    critic = trained(shape, how, language=False) if needs.critic else 0.0
    buckets = each + critic if how.devices > 1 and not how.split else 0.0
    head = float(shape.embedding * 4) if language and not how.rank else 0.0
    # Lightning's autocast caches no 16-bit copy of a weight: what the graph keeps is kept, under checkpointing none.
    casts = 2.0 * shape.linears if kind.mixed and kind.weight == 4 else 0.0
    # Fsdp reduces a layer's gradients while it works on the layer before, and those of the root at the end.
    whole = how.split and not how.rank
    of_layer = reduced(how, shape.layer) if whole else 0.0
    # By then no layer is gathered any more, and the root has no reduced gradient yet.
    of_root = reduced(how, root(shape)) - kind.weight * root(shape) / share - 2 * kind.compute * shape.layer
    of_root = of_root if whole else head
    found: list[Parts] = []
    for place, micro in enumerate(micros):
        square = _square(shape, how, micro)
        kept = activations.kept(shape, kind, how.rank, micro, how.checkpointing, square)
        kept += 0.0 if how.checkpointing else casts
        again = activations.layer(shape, kind, how.rank, micro, square) + activations.passing(shape, how.rank)
        working = micro.tokens * again + casts / shape.layers if how.checkpointing else 0.0
        chunk = logits(shape, how, micro) if language else 0.0
        waiting = how.kind.compute * float(kept_tokens(shape, how, micro) * shape.vocab) if language else 0.0
        before = (each + critic) / share if place else 0.0
        with_head = max(before, critic / share) + head  # a critic runs forward last, so backward reaches it first
        found += [
            {"gradients": before, "activations": kept, "logits": chunk},
            {"gradients": before, "activations": kept * (2 if needs.critic else 1) + working, "logits": waiting},
            {"gradients": with_head, "activations": kept, "logits": logits_back(shape, how, micro) if head else 0.0},
            {"gradients": with_head + of_layer, "activations": kept + working},
            {"gradients": (each + critic) / share + of_root},
        ]
    if how.split:
        # What comes from the others is one buffer first, which is then copied: of the root when a pass begins.
        copied = how.kind.compute * float(root(shape))
        before = (each + critic) / share if len(micros) > 1 else 0.0
        found.append({"gradients": before, "activations": copied})
    if how.offload:  # a gradient leaves the device once it is reduced
        found = [{**parts, "gradients": parts["gradients"] - min(parts["gradients"], each / share)} for parts in found]
    fullest = max(found, key=_sum)
    return {**fullest, "gradients": fullest["gradients"] + buckets}


def generation(
    needs: Needs, shape: ModelShape, how: MemoryLayout, micros: tuple[Micro, ...], batches: Batches
) -> Parts:
    """Return gradients left over, and the fullest of reading prompts, generating and scoring."""
    share = how.share
    each = trained(shape, how, language=True) if needs.learns else 0.0
    critic = trained(shape, how, language=False) if needs.critic else 0.0
    buckets = each + critic if how.devices > 1 and not how.split else 0.0
    left = {"gradients": 0.0 if how.offload else (each + critic) / share + buckets}
    kind = how.kind
    mixed = kind.mixed and kind.weight == 4
    casts = 2.0 * shape.linears if mixed and not how.rank else 0.0  # of frozen weights none is cached
    number = 2.0 if mixed else kind.compute
    through = kind.residual * 3 * shape.hidden + kind.compute * 2 * shape.intermediate
    copied = 2 * batches.answers * batches.prompt * shape.kv_heads * shape.head_dim
    shared = batches.prompts < batches.answers and batches.prompt >= SHARE_FROM and copied >= SHARED_NUMBERS
    columns = batches.answer + (0 if shared else batches.prompt)
    own = shape.kv_cache(number) * batches.answers * columns
    prompts = shape.kv_cache(number) * batches.prompts * batches.prompt if shared else 0.0
    vocabulary, head = 4.0 * shape.vocab, 2.0 * shape.embedding if mixed else 0.0
    # A layer's keys and values are copied where they get more columns.
    found: list[Parts] = [
        {"kv_cache": own + prompts, "activations": casts + through * batches.prompts * batches.prompt},
        {
            "kv_cache": own + prompts,
            "activations": casts + own / shape.layers,
            "logits": 2 * vocabulary * batches.answers + head,
        },
        {"kv_cache": own + prompts, "activations": casts, "logits": 4 * vocabulary * batches.answers + head},
    ]
    if needs.passes_read:
        for micro in micros:
            square = 8.0 * shape.heads * micro.width if _square(shape, how, micro) else 0.0  # scores, and their softmax
            chunk = (
                logits(shape, how, micro, trains=False) if needs.reference or needs.passes_read > needs.critic else 0.0
            )
            states = 2 * kind.residual * shape.hidden * micro.tokens
            found += [
                {"activations": casts + max(through, square + 3 * kind.residual * shape.hidden) * micro.tokens},
                {"activations": casts + states, "logits": chunk},
            ]
    return left | max(found, key=_sum)


def _square(shape: ModelShape, how: MemoryLayout, micro: Micro) -> bool:
    """Return whether attention makes all scores of a row (transformers repeats shared keys itself under a mask)."""
    return how.eager or (how.no_kernel and shape.heads != shape.kv_heads and not micro.padded)


def _sum(parts: Parts) -> float:
    return sum(parts.values())
