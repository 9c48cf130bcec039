"""Memory of one device while a model trains or generates: published formulas, for any trainer.

P parameters, L layers, h hidden, V vocabulary, s tokens of a sequence, b sequences at a time, N devices.

    weights      2 P in 16 bits; nf4 with double quantisation 0.516 a parameter of the linears (2305.14314, section 3:
                 4 bits and 0.127 for its constants), 2 of embeddings and head
    gradients    2 P in 16 bits, 4 P in 32
    optimizer    12 P: fp32 master, m and v (ZeRO, 1910.02054, section 3.1); 8 P where the weights are fp32 themselves
    activations  2 s b h L + 34 s b h with full checkpointing, 34 s b h L without (2205.05198, Eq 2; no 5 a s / h term,
                 since flash attention never has the square)
    logits       10 s b V (16 bits, their fp32 copy and its gradient), or of a chunk only
    kv cache     2 * 2 L kv d a token

``align.advisor.estimate.engine_memory`` says what align's own engine takes, instant by instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from align.advisor.estimate.model_shape import ModelShape
from align.schemas.engine import KEPT, LOGITS, activation_bytes

Tuning = Literal["full", "lora", "qlora"]
Sharding = Literal[
    "ddp", "fsdp", "fsdp_zero2", "fsdp_offload", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"
]
"""ddp: everything everywhere. fsdp: everything split; with zero2 the weights are gathered for a whole step
(``reshard_after_forward: false``), with offload what is split is in the host's memory. zero1 to zero3: DeepSpeed's
stages, which split the optimizer, the gradients, the weights; with offload the optimizer is in the host's memory. They
hold the formulas to published figures: align runs the first four."""

SPLIT = ("fsdp", "fsdp_zero2", "fsdp_offload", "zero3", "zero3_offload")
"""Shardings that split the weights."""

NF4 = 0.516
BASE = 1e9
"""Bytes of a CUDA context, NCCL and fragmentation: 0.8 to 1.5 GB are seen."""
LOGIT = 10
"""Bytes of a logit on a GPU: in 16 bits, in fp32, and its probability (align.core.models.policy)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The layout and training of a model.

    tokens: of one forward pass, s b; of pairs both answers count. gradient, optimizer: bytes per trained parameter.
    logits: bytes that they take per token and vocabulary entry, or 0 for align's head: chunks, and without
    checkpointing those it keeps. copies: frozen models next to the
    policy, in 16 bits (reference, reward). critics: further trained models of the same shape. concurrent: tokens
    in the cache while generating, all answers at once.
    """

    tuning: Tuning = "full"
    sharding: Sharding = "ddp"
    devices: int = 1
    tokens: int = 4096
    rank: int = 16
    weight: float = 2
    gradient: float = 2
    optimizer: float = 12
    checkpointing: bool = True
    logits: float = 0
    copies: float = 0
    critics: int = 0
    concurrent: int = 0


def sharded(params: float, largest: float, devices: int, sharding: Sharding, setting: Setting) -> dict[str, float]:
    """Bytes on one of N devices of P trained parameters, of which the largest layer has so many.

        ddp            (2 + 2 + 12) P           fsdp           (2 + 2 + 12) P / N + 4 largest
        fsdp_zero2     2 P + 16 P / N + 4 largest               fsdp_offload   4 largest
        zero1          4 P + 12 P / N           zero2          4 P + 16 P / N
        zero3          18 P / N + 4 largest     zero2_offload  2 P     zero3_offload  2 P / N + 4 largest

    DeepSpeed (memory.rst) has split gradients in fp32, under zero2 also whole ones in 16 bits; a split layer is whole
    while it works, in weights and gradients. The 2, 2 and 12 are the setting's own.
    """
    weights, gradients, optimizer = (each * params for each in (setting.weight, setting.gradient, setting.optimizer))
    whole = (setting.weight + setting.gradient) * largest if sharding in SPLIT and devices > 1 else 0.0
    match sharding:
        case "ddp":
            parts = weights, gradients, optimizer
        case "fsdp":
            parts = weights / devices + whole, gradients / devices, optimizer / devices
        case "fsdp_zero2":
            parts = weights + weights / devices + whole, gradients / devices, optimizer / devices
        case "fsdp_offload":
            parts = whole, 0.0, 0.0
        case "zero1":
            parts = weights, gradients, optimizer / devices
        case "zero2":
            parts = weights, gradients + 4 * params / devices, optimizer / devices
        case "zero2_offload":
            parts = weights, 0.0, 0.0
        case "zero3":
            parts = weights / devices + whole, 4 * params / devices, optimizer / devices
        case "zero3_offload":
            parts = weights / devices + (setting.weight + setting.gradient) * largest, 0.0, 0.0
    return dict(zip(("weights", "gradients", "optimizer"), parts, strict=True))


def states(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """Bytes on one device of weights, gradients, optimizer and adapter."""
    if setting.tuning == "full":
        return sharded(shape.params, shape.layer, setting.devices, setting.sharding, setting)
    weights: float = 2 * shape.params
    if setting.tuning == "qlora":
        weights = NF4 * shape.linears + 2 * (shape.params - shape.linears)
    adapter = shape.lora(setting.rank) * (setting.weight + setting.gradient + setting.optimizer)
    if setting.sharding in SPLIT and setting.devices > 1:
        return {"weights": weights / setting.devices + 2 * shape.layer, "adapter": adapter / setting.devices}
    return {"weights": weights, "adapter": adapter}


def host(shape: ModelShape, setting: Setting) -> float:
    """Return bytes of the host's memory with an offloaded optimizer, of all devices together.

    16 P: what fsdp would hold on the devices. DeepSpeed's: 18 P times 1.5 for buffers (memory.rst).
    """
    if setting.sharding == "fsdp_offload":
        return (setting.weight + setting.gradient + setting.optimizer) * shape.params
    return 1.5 * 18 * shape.params if setting.sharding.endswith("offload") else 0.0


def activations(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """Return bytes that a forward pass keeps for its backward, and of the logits."""
    kept = activation_bytes(setting.tokens, shape.hidden, shape.layers, setting.checkpointing)
    numbers = float(setting.tokens * shape.vocab)
    waiting = setting.tuning == "full" and not setting.checkpointing
    own = min(KEPT["cuda"], 2 * numbers) * waiting + LOGIT * min(LOGITS["cuda"], numbers)
    return {"activations": kept, "logits": setting.logits * numbers or own}


def training(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """Bytes by component at the peak of a training step."""
    held = states(shape, setting)
    share = setting.devices if setting.sharding in SPLIT else 1
    if setting.copies:
        held["reference"] = 2 * setting.copies * shape.params / share
    parts = activations(shape, setting)
    if setting.critics:
        held["critic"] = setting.critics * sum(states(shape, replace(setting, copies=0)).values())
        parts["activations"] *= 1 + setting.critics
    return {**held, **parts, "base": BASE}


def generation(shape: ModelShape, setting: Setting) -> dict[str, float]:
    """Return bytes by component while answers are sampled: the training state with a cache in place of activations."""
    if not setting.concurrent:
        return {}
    kept = {k: v for k, v in training(shape, setting).items() if k not in ("activations", "logits")}
    return {**kept, "kv_cache": shape.kv_cache() * setting.concurrent}


def peak(shape: ModelShape, setting: Setting) -> Mapping[str, float]:
    """The larger of the two phases, by component."""
    phases = [training(shape, setting), generation(shape, setting)]
    return max(phases, key=lambda parts: sum(parts.values()))
