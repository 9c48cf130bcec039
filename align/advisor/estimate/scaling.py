"""A training step on many GPUs: arithmetic, and the traffic of weights and gradients between machines.

arithmetic   training_flops of the micro-batch / (peak * MFU), MFU as on a few GPUs: whatever N is, each does the same
fsdp         every micro-batch gathers the 16-bit weights twice (forward, backward) and reduces 32-bit gradients:
             (2 + 2 + 4) P bytes (three times the parameters: ZeRO-3, 1910.02054 section 7.2)
ddp          every step all-reduces 32-bit gradients once: 2 * 4 P bytes
link         of these (M - 1) / M cross into a machine, through all its network cards (NCCL's rings); M machines
step         max(arithmetic, traffic): one is hidden behind the other
rollouts     2 P bytes into each machine that samples after a step, all of them at the same time
memory       16 P / N bytes of weights, gradients and moments with fsdp, 16 P with ddp; the rest: ``memory_formulas``

P parameters, N GPUs. Published figures that it is held against are in tests/advisor/test_scaling.py. Left out: slow
machines that all wait for, failures, latency (felt where a layer's share is below a few megabytes), other traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.advisor.estimate.memory_formulas import Tuning
from align.advisor.estimate.model_shape import ModelShape
from align.advisor.estimate.training_cost import Load, efficiency, training_flops
from align.schemas.gpus import Device

NODE = 8
"""GPUs of a machine; inside it traffic is faster than arithmetic and is not counted."""
LINK = NODE * 50e9
"""Bytes a second into a machine: 400 Gb/s for each of its GPUs, as in TorchTitan's cluster of H100s."""
REACHED = 0.7
"""Share of the link's rate that a collective of large messages reaches (an assumption; NCCL reports 0.7 to 0.9)."""
STATE = 16.0
"""Bytes of a trained parameter in 32 bits: weight, gradient, two moments."""


@dataclass(frozen=True, slots=True)
class ScaledStep:
    """One micro-batch on each of N GPUs, as a range of MFU. Seconds; tokens a second of all GPUs; bytes of a GPU."""

    arithmetic: tuple[float, float]
    traffic: float
    seconds: tuple[float, float]
    tokens_per_second: tuple[float, float]
    state: float

    @property
    def bound(self) -> Literal["arithmetic", "traffic"]:
        """Return which of the two takes longer at the best MFU, and so limits the step."""
        return "traffic" if self.traffic > self.arithmetic[0] else "arithmetic"


def traffic_bytes(shape: ModelShape, devices: int) -> float:
    """Return the bytes that cross into each machine: for each micro-batch with fsdp, for each step with ddp."""
    machines = max(1, devices // NODE)
    return 8.0 * shape.params * (machines - 1) / machines  # the same sum for both: (2 + 2 + 4) P, and 2 * 4 P


def scaled_step(
    shape: ModelShape,
    device: Device,
    devices: int,
    tokens: float,
    *,
    strategy: Literal["ddp", "fsdp"] = "fsdp",
    tuning: Tuning = "full",
    checkpointing: bool = True,
    mfu: tuple[float, float] | None = None,
    link: float = LINK,
) -> ScaledStep:
    """Return the time of a step in which each GPU learns from ``tokens`` tokens in one micro-batch.

    devices: all GPUs; their number is a multiple of ``NODE`` where it is larger. mfu: low and high, by default
    ``efficiency``'s. link: bytes a second into a machine. Raises ValueError if the peak is not known.
    """
    if device.peak is None:
        raise ValueError(f"the peak in TFLOP/s of {device.name} is not known")
    low, high = mfu or efficiency(shape, devices)
    flops = training_flops(shape, Load(learned=tokens), tuning, checkpointing)
    arithmetic = flops / (device.peak * high), flops / (device.peak * low)
    traffic = traffic_bytes(shape, devices) / (link * REACHED)
    seconds = max(arithmetic[0], traffic), max(arithmetic[1], traffic)
    rate = devices * tokens
    state = STATE * shape.params / (devices if strategy == "fsdp" else 1)
    return ScaledStep(arithmetic, traffic, seconds, (rate / seconds[1], rate / seconds[0]), state)


def tokens_to_hide_traffic(
    shape: ModelShape, device: Device, *, checkpointing: bool = True, mfu: float = 0.4, link: float = LINK
) -> float:
    """Return the fewest tokens of a GPU's micro-batch that hide fsdp's traffic, whatever the model's size."""
    assert device.peak is not None
    flops_of_one = training_flops(shape, Load(learned=1.0), "full", checkpointing)
    return 8.0 * shape.params / (link * REACHED) * device.peak * mfu / flops_of_one


def sync_seconds(shape: ModelShape, link: float = LINK) -> float:
    """Return the seconds until every sampler has the new 16-bit weights; each receives all of them once."""
    return 2.0 * shape.params / (link * REACHED)
