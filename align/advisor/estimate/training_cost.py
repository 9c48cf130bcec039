"""Tokens, FLOPs, GPU-hours, wall time and cost, as ranges: efficiency is not known beforehand.

training     6 P D, 8 P D with full recomputation (2001.08361, section 2.1; Megatron, 2104.04473)
adapter      4 P D, 6 P D with recomputation: frozen weights need no gradient of their own
inference    2 P D
time         FLOPs / (N * peak * MFU)
decoding     tokens a second <= B * bandwidth / (weights + B * context * kv cache a token), times 0.4 to 0.7

MFU is the share of the peak that is reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import add
from pathlib import Path
from typing import Any

import yaml

from align.advisor.estimate.memory_formulas import Tuning
from align.advisor.estimate.model_shape import ModelShape
from align.schemas.advice import Estimate, Range
from align.schemas.errors import AlignError
from align.schemas.gpus import Device

MFU: Mapping[str, tuple[float, float]] = {
    "several": (0.35, 0.45),
    "one": (0.25, 0.38),
    "small": (0.15, 0.25),
}
"""Share of the peak that training reaches: packed on several GPUs; on one, with an adapter; of models below 1B and of
short rows. (LLaMA-Factory's 7B LoRA on an A100 is 38% at 6 P D; BloombergGPT 31% at 8 P D.)"""
DECODING = (0.4, 0.7)
"""Share of the memory's bandwidth that decoding reaches."""


@dataclass(frozen=True, slots=True)
class Load:
    """The tokens that a stage processes.

    learned: tokens through forward and backward, all passes. read: tokens through a forward pass only (reference,
    log-probabilities, reward model), times the models that read them. made: tokens to be sampled. context: mean tokens
    before one that is sampled. critics: further models trained on the same tokens. ahead: sampled while the phase
    before is learned from (``rollout.max_staleness: 1``), so that the longer of the two counts.
    """

    learned: float
    read: float = 0.0
    made: float = 0.0
    context: float = 512.0
    critics: int = 0
    ahead: bool = False


def training_flops(shape: ModelShape, load: Load, tuning: Tuning, checkpointing: bool) -> float:
    """Return the FLOPs of learning and reading: (6 or 4) P D, 2 P D more with recomputation, 2 P D for what is read."""
    each = (6 if tuning == "full" else 4) + (2 if checkpointing else 0)
    return shape.working * (each * load.learned * (1 + load.critics) + 2 * load.read)


def efficiency(shape: ModelShape, devices: int) -> tuple[float, float]:
    """Return the MFU to compute with, low and high."""
    return MFU["small" if shape.params < 1e9 else "several" if devices > 1 else "one"]


def decoding_rate(shape: ModelShape, device: Device, concurrent: float, context: float) -> tuple[float, float]:
    """Return tokens a second of one device with so many answers at a time, low and high.

    Bound by memory: every step reads the weights once and every answer's cache; and by arithmetic, 2 P a token.
    """
    assert device.bandwidth is not None and device.peak is not None
    per_step = 2 * shape.working + concurrent * context * shape.kv_cache()
    bound = min(concurrent * device.bandwidth / per_step, device.peak / (2 * shape.working))
    return DECODING[0] * bound, DECODING[1] * bound


def lacking(device: Device, load: Load) -> str:
    """Return the figures of a device that its hours need and that nobody gave, in words; empty where all are known."""
    figures = [] if device.peak is not None else ["peak in TFLOP/s"]
    if load.made and device.bandwidth is None:  # sampling is bound by memory, training is not
        figures.append("memory bandwidth in TB/s")
    return " and ".join(figures)


def seconds(
    shape: ModelShape,
    load: Load,
    tuning: Tuning,
    checkpointing: bool,
    device: Device,
    devices: int,
    concurrent: float = 64,
) -> tuple[float, float]:
    """Seconds of one device times the number of them, low and high. Raises ValueError where a figure is ``lacking``."""
    if device.peak is None or lacking(device, load):
        raise ValueError(f"the {lacking(device, load)} of {device.name} is not known")
    low, high = efficiency(shape, devices)
    flops = training_flops(shape, load, tuning, checkpointing)
    learning = flops / (device.peak * high), flops / (device.peak * low)
    if not load.made:
        return learning
    slow, fast = decoding_rate(shape, device, concurrent, load.context)
    join = max if load.ahead else add
    return join(learning[0], load.made / fast), join(learning[1], load.made / slow)


def estimate(
    shape: ModelShape,
    load: Load,
    tuning: Tuning,
    device: Device | None,
    devices: int,
    prices: Mapping[str, float] | None = None,
    currency: str = "",
    checkpointing: bool = True,
) -> Estimate:
    """Return tokens, FLOPs, hours and cost; without a known device tokens and FLOPs only."""
    tokens = load.learned + load.made
    flops = training_flops(shape, load, tuning, checkpointing) + 2 * shape.working * load.made
    found = Estimate(
        tokens=Range(low=tokens, high=tokens),
        flops=Range(low=_short(flops), high=_short(flops)),
        basis=f"{'6' if tuning == 'full' else '4'} P D{' and 2 P D for recomputation' if checkpointing else ''}"
        f"{', 2 P for each token read or sampled' if load.read or load.made else ''}; P = {_size(shape.params)}",
    )
    if device is None or device.peak is None or lacking(device, load):
        return found
    low, high = seconds(shape, load, tuning, checkpointing, device, devices)
    efficient = efficiency(shape, devices)
    update: dict[str, Any] = {
        "gpu_hours": Range(low=_short(low / 3600), high=_short(high / 3600)),
        "wall_hours": Range(low=_short(low / 3600 / devices), high=_short(high / 3600 / devices)),
        "basis": f"{found.basis}; {efficient[0]:.0%} to {efficient[1]:.0%} of {device.peak / 1e12:.0f} TFLOP/s",
    }
    if prices and device.name in prices:
        price = prices[device.name]
        update |= {
            "cost": Range(low=round(low / 3600 * price, 2), high=round(high / 3600 * price, 2)),
            "currency": currency,
        }
    return found.model_copy(update=update)


def _size(params: int) -> str:
    """8.03B, 494M, 39.1k."""
    unit, name = next(((u, n) for u, n in ((1e9, "B"), (1e6, "M")) if params >= u), (1e3, "k"))
    return f"{params / unit:.3g}{name}"


def _short(value: float) -> float:
    """Three digits: no more is known."""
    return float(f"{value:.3g}")


def read_prices(path: Path) -> tuple[dict[str, float], str, str]:
    """A user's prices: accelerator to money an hour, the currency, and the date they are of.

        currency: EUR
        date: 2026-11-01
        per_hour: {H100: 2.10, A100-80: 1.30}

    Raises AlignError where it says something else.
    """
    where = str(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AlignError(f"cannot be read: {error}", "give a YAML file", where=where) from error
    wanted = "write currency, date and per_hour: {H100: 2.10}"
    if not isinstance(values, dict) or set(values) - {"currency", "date", "per_hour"} or "per_hour" not in values:
        raise AlignError("is not a price file", wanted, where=where)
    prices = values["per_hour"]
    if not isinstance(prices, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in prices.values()
    ):
        raise AlignError("per_hour is not a mapping of accelerators to prices", wanted, where=where)
    return {str(k): float(v) for k, v in prices.items()}, str(values.get("currency", "")), str(values.get("date", ""))
