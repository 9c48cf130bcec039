"""Tokens a second: of the log-probability primitive, of training in each layout, and of answers."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from engine import peak, weighed
from making import AROUND, SHAPES, model_in, run_of, write_rows
from recording import GIB, Bench
from torch import Tensor
from transformers import AutoModelForCausalLM

from align.core.data.step_plan import FORWARD
from align.core.generation.decode import Decoder
from align.core.generation.generator_base import Request
from align.core.models.policy import Policy, token_logprobs
from align.core.util.profile import profiling
from align.schemas.run import Sampling

VOCABULARY = 128_256
MIXED = {"precision": "bf16-mixed"}


def timed(do: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds after one call to warm up; waits for the GPU."""
    seconds = []
    for _ in range(repeats + 1):
        _wait()
        started = time.perf_counter()
        do()
        _wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(bench: Bench) -> dict[str, float]:
    """What the card does at best: a large product in bfloat16 and float32, a copy (bytes read and written)."""
    n = 256 if bench.quick else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bf16 = 2 * n**3 / timed(lambda: a @ b, 10) / 1e12
    c, d = a.float(), b.float()
    fp32 = 2 * n**3 / timed(lambda: c @ d, 3) / 1e12
    source = torch.empty(2 ** (20 if bench.quick else 31), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copied = 2 * len(source) / timed(lambda: target.copy_(source), 10) / 1e12
    return {"bf16_tflops": round(bf16, 1), "fp32_tflops": round(fp32, 1), "copy_tb_per_second": round(copied, 2)}


def primitive(bench: Bench, tokens: int, width: int, trains: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and backward through the head: full logits beside chunks of several sizes, with all metrics.

    Also what is kept for backward, by budget, with chunks of 2^26; and cut-cross-entropy, where it is installed: a
    fused kernel whose backward takes a gradient for each token (Liger's multiplies by the first alone), here without
    its filter, which leaves small gradients out. It has no metrics.
    """
    vocabulary = 1000 if bench.quick else VOCABULARY
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=bench.device, dtype=dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=bench.device) * width**-0.5).to(dtype).requires_grad_(trains)
    target = torch.randint(vocabulary, (tokens,), device=bench.device)

    def naive() -> Tensor:
        return (hidden @ weight.T).float().log_softmax(-1).gather(-1, target[:, None])[:, 0]

    def chunked(logits: int, keep: int = 0) -> Tensor:
        return token_logprobs(hidden, weight, None, target, max(1, logits // vocabulary), keep=keep).logp_T

    def cost(way: Callable[[], Tensor]) -> tuple[dict[str, float], Tensor]:
        def both() -> None:
            hidden.grad = weight.grad = None
            kept.append(way())
            kept[-1].mean().backward()
            del kept[:-1]

        kept: list[Tensor] = []
        both()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        hidden.grad = weight.grad = None
        peak()
        both()
        most = peak() - before
        return {"peak_gib": round(most / GIB, 3), "milliseconds": round(1000 * timed(both), 2)}, kept[-1].detach()

    found: dict[str, Any] = {}
    for power in (24, 25, 26, 27, 28):
        found[f"chunks of 2^{power}"], ours = cost(partial(chunked, 2**power))
    for power in (30, 31, 32, 33) if trains else ():
        found[f"2^{power} bytes kept"], ours = cost(partial(chunked, 2**26, 2**power))
    if find_spec("cut_cross_entropy") is not None and dtype is not torch.float32:
        from cut_cross_entropy import linear_cross_entropy

        fused = partial(linear_cross_entropy, reduction="none", filter_eps=None)
        found["cut-cross-entropy"], _ = cost(lambda: -fused(hidden, weight, target))
    found["full logits"], theirs = cost(naive)
    found["largest_difference"] = float((ours - theirs).abs().max())
    best, full = found["chunks of 2^26"], found["full logits"]
    return {
        "memory_share": round(best["peak_gib"] / full["peak_gib"], 3) if full["peak_gib"] else None,
        "time_share": round(best["milliseconds"] / full["milliseconds"], 2),
        **found,
    }


def training(
    bench: Bench,
    shape: str,
    lengths: list[int],
    batch: int,
    ceiling: float,
    algorithm: str = "sft",
    steps: int = 8,
    **sections: Any,
) -> dict[str, Any]:
    """Training by an algorithm: the steps after the first two, and what share of the card's best they take.

    Of ``dpo`` a row is a pair of that length each; its reference is measured before the first step and not counted.
    """
    name = f"speed-{time.monotonic_ns()}"
    lengths = random.Random(1).choices(lengths, k=steps * batch)
    file = write_rows(bench.work / f"{name}.jsonl", algorithm, [(n // 4 - AROUND, n - n // 4) for n in lengths])
    train = {"batch_size": batch, "max_steps": steps, **MIXED, **sections.pop("train", {})}
    sections |= {"train": train, "devices": {"accelerator": bench.device}, "optimizer": {"learning_rate": 1e-5}}
    run = run_of({"type": algorithm}, model_in(bench.work, shape), file, bench.work / name, **sections)
    with profiling(None, bench.device) as profile:
        scale, ready, _ = weighed(run, steps)
    parts = profile.facts()["parts"]
    config, measured = SHAPES[shape], scale.steps[2:]
    seconds, tokens = sum(s["step_seconds"] for s in measured), sum(s["tokens"] for s in measured)
    flops = per_token(ready.model.policy, config, sum(n * n for n in lengths) / sum(lengths)) * tokens / seconds
    micros = [m for s in measured for m in s["micros"]]
    return {
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(flops / 1e12, 1),
        "share_of_ceiling": round(flops / 1e12 / ceiling, 3) if ceiling else None,
        "padding_share": round(1 - tokens / sum(m["rows"] * m["length"] for m in micros), 3),
        "micros_per_step": round(len(micros) / len(measured), 2),
        "layout": ready.batcher.layout,
        "attention": ready.model.policy.unwrapped.config._attn_implementation,
        "between_share": round(sum(s["between_seconds"] for s in measured) / seconds, 3),
        "peak_gib": round(max(s["step_peak"] for s in measured) / GIB, 2),
        "step_seconds": [s["step_seconds"] for s in scale.steps],
        "losses": [round(s["loss"], 4) for s in scale.steps],
        "part_seconds": {part: round(each.get("device_seconds", each["seconds"]), 3) for part, each in parts.items()},
    }


def per_token(policy: Policy, config: dict[str, Any], length: float) -> float:
    """Operations that a token needs, forward and backward, nothing computed twice and every token scored.

    2 for each number of a matrix forward, 2 for what goes back through it, 2 for its own gradient if it learns; causal
    attention over ``length`` tokens, 6 L h s (half of 12 L h s, 2204.02311 appendix B). Looking up costs nothing.
    """
    lookup = policy.unwrapped.get_input_embeddings().weight
    matrices = [p for p in policy.parameters() if p.ndim == 2 and (p is not lookup or config["tie_word_embeddings"])]
    attention = 6 * config["num_hidden_layers"] * config["hidden_size"] * length
    return attention + sum((4 + 2 * p.requires_grad) * p.numel() for p in matrices)


def answers(bench: Bench, shape: str, rows: int, most: int, dtype: torch.dtype, autocast: bool) -> dict[str, Any]:
    """The embedded generator: groups of eight to prompts of 128 tokens, every answer as long as the limit."""
    network = (
        AutoModelForCausalLM.from_pretrained(str(model_in(bench.work, shape)), dtype=dtype).to(bench.device).eval()
    )
    draws = np.random.default_rng(0)
    prompts = [draws.integers(4, 260, 128).astype(np.int32) for _ in range(rows // 8)]
    requests = [Request(p, tuple(range(8 * i, 8 * i + 8))) for i, p in enumerate(prompts)]
    decoder = Decoder(network, None, (), 8192, rows * (128 + most))  # type: ignore[arg-type]  # no stop strings
    peak()
    with torch.autocast(bench.device, torch.bfloat16, enabled=autocast):
        decoder.generate(requests, Sampling(max_completion_length=8))
        _wait()
        started = time.perf_counter()
        said = decoder.generate(requests, Sampling(max_completion_length=most))
        _wait()
        seconds = time.perf_counter() - started
    tokens = sum(len(sample.tokens) for group in said for sample in group)
    return {
        "tokens_per_second": round(tokens / seconds),
        "milliseconds_per_step": round(1000 * seconds / most, 2),
        "peak_gib": round(peak() / GIB, 2),
        "tokens": tokens,
    }


def main(bench: Bench) -> None:
    """Ceilings, the primitive, training, answers; what compiles comes last."""
    quick = bench.quick
    best = bench.check("ceilings", partial(ceilings, bench), again=True).get("bf16_tflops", 0.0)
    tokens = 64 if quick else 16_384
    for name, width, trains, dtype in (
        ("head trained, bf16, width 2048", 2048, True, torch.bfloat16),
        ("head trained, fp32, width 2048", 2048, True, torch.float32),
        ("head frozen, bf16, width 4096", 4096, False, torch.bfloat16),
    ):
        fewer = tokens // 4 if dtype is torch.float32 else tokens
        bench.check(
            f"log-probabilities: {name}, {fewer} tokens", partial(primitive, bench, fewer, width, trains, dtype)
        )

    medium, large = ("tiny", "tiny") if quick else ("medium", "large")
    long, mixed = ([128], [96, 128, 192, 256]) if quick else ([2048], [128, 256, 512, 1024, 2048])

    def sft(title: str, shape: str, lengths: list[int], batch: int, forward: int = 0, **sections: Any) -> None:
        costs = dict.fromkeys(FORWARD, forward) if forward else {}

        def do() -> dict[str, Any]:
            with patch.dict(FORWARD, costs):
                return training(bench, shape, lengths, batch, best, **sections)

        bench.check(f"{shape}: sft, {title}", do)

    full, many = (8, 8) if quick else (32, 64)
    saving, packed = {"gradient_checkpointing": True}, {"layout": "packed"}
    sft("equal lengths, padded", medium, long, full)
    sft("equal lengths, padded", large, long, full // 2)
    for forward in (64, 256, 1024, 2048, 8192):
        sft(f"mixed lengths, padded, {forward} tokens for a pass", medium, mixed, many, forward)
    for micro in (4096, 8192, 16_384):
        train = {**packed, "micro_batch_tokens": micro}
        sft(f"mixed lengths, packed, sdpa, {micro} tokens at a time", medium, mixed, many, train=train)
    sizes = ((64, 8, torch.bfloat16, False), (256, 8, torch.bfloat16, False), (256, 8, torch.float32, True))
    for rows, most, dtype, autocast in sizes:
        rows, most = (16, most) if quick else (rows, 128)
        title = f"answers: {rows} at once, {'autocast over float32' if autocast else 'bfloat16'}"
        bench.check(f"{medium}: {title}", partial(answers, bench, medium, rows, most, dtype, autocast))
    for micro in (4096, 8192, 32_768):
        sft(f"equal lengths, {micro} tokens at a time", medium, long, full, train={"micro_batch_tokens": micro})
    bf16 = {"model": {"dtype": "bfloat16"}, "train": {"precision": "32-true"}}
    sft("equal lengths, bfloat16 weights", medium, long, full, **bf16)
    sft("equal lengths, checkpointing", medium, long, full, model=saving)
    sft("equal lengths, lora over bfloat16", large, long, full // 2, model={"adapter": {}, "dtype": "bfloat16"})
    if not quick:
        sft(
            "mixed lengths, packed, flex",
            medium,
            mixed,
            many,
            model={"attn_implementation": "flex_attention"},
            train=packed,
        )
