"""The share of the card's best that training reaches: SFT and DPO at 1.24B and 8B, padded and packed, by attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from recording import Bench
from speed import ceilings, training

ATTENTIONS = ("sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Kernels to try packed rows with; one that is not installed is recorded as failed, with the reason."""


def main(bench: Bench) -> None:
    """What the issue asks for first; what compiles, and the model that takes longest to make, last."""
    best = bench.check("ceilings", partial(ceilings, bench), again=True).get("bf16_tflops", 0.0)
    quick = bench.quick
    large, huge = ("tiny", "tiny") if quick else ("large", "huge")
    long, mixed = ([128], [96, 128, 192, 256]) if quick else ([2048], [128, 256, 512, 1024, 2048])
    rows = 4 if quick else 16

    def reach(title: str, shape: str, lengths: list[int], batch: int, **settings: Any) -> None:
        bench.check(f"{shape}: {title}", partial(training, bench, shape, lengths, batch, best, **settings))

    reach("sft, equal lengths, padded", large, long, rows)
    reach("dpo, equal lengths, padded", large, long, rows // 2, algorithm="dpo", steps=6)
    reach("sft, mixed lengths, padded", large, mixed, 2 * rows)
    packed = {"train": {"layout": "packed"}}
    for attention in ("sdpa",) if quick else ATTENTIONS:
        model = {"attn_implementation": attention}
        reach(f"sft, mixed lengths, packed, {attention}", large, mixed, 2 * rows, model=model, **packed)
    # 8B with its optimizer fits into 80 GB in bfloat16 alone, and so only on cards with more.
    bf16 = {"model": {"dtype": "bfloat16", "gradient_checkpointing": True}, "train": {"precision": "32-true"}}
    reach("sft, equal lengths, padded, bfloat16", huge, long, rows // 2, steps=4, **bf16)
    reach("dpo, equal lengths, padded, bfloat16", huge, long, rows // 4, algorithm="dpo", steps=4, **bf16)
