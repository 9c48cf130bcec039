"""Bytes at a training step and while answers are sampled, with every number that a formula for them needs."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from engine import allocated, weighed
from making import AROUND, ONLINE, SHAPES, model_in, run_of, write_rows
from recording import GIB, Bench
from torch.nn import functional

from align.schemas.engine import KEPT

LORA = {"adapter": {"type": "lora", "r": 16}}
SAVING = {"gradient_checkpointing": True}
BF16 = {"dtype": "bfloat16"}
MIXED, TRUE = {"precision": "bf16-mixed"}, {"precision": "32-true"}
"""Training in bfloat16 alone is ``model.dtype: bfloat16`` under 32-true: no autocast, everything in its own type."""

WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {},
    "bf16-mixed": {"train": MIXED},
    "bf16": {"model": BF16, "train": TRUE},
    "bf16-mixed, checkpointing": {"model": SAVING, "train": MIXED},
    "bf16, checkpointing": {"model": BF16 | SAVING, "train": TRUE},
    "lora, bf16-mixed": {"model": LORA, "train": MIXED},
    "lora, bf16 base, bf16-mixed": {"model": LORA | BF16, "train": MIXED},
    "lora, bf16 base, bf16-mixed, checkpointing": {"model": LORA | BF16 | SAVING, "train": MIXED},
    "packed, bf16-mixed": {"train": {**MIXED, "layout": "packed"}},
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft"},
    "dpo": {"type": "dpo"},
    "reward_model": {"type": "reward_model"},
    "grpo": {"type": "grpo", "num_generations": 8, "beta": 0.05},
    "ppo": {"type": "ppo", "num_generations": 8, "num_iterations": 1},
}
CASES: dict[str, list[tuple[str, str]]] = {
    "medium": [
        *(("sft", way) for way in WAYS),
        *(("sft uneven", way) for way in ("bf16-mixed", "bf16", "lora, bf16 base, bf16-mixed")),
        *itertools.product(("dpo", "grpo", "ppo"), ("bf16-mixed", "lora, bf16-mixed")),
        ("dpo", "bf16-mixed, checkpointing"),
        ("dpo reference copy", "bf16-mixed"),
        ("reward_model", "bf16-mixed"),
        ("grpo", "bf16-mixed, checkpointing"),
        ("grpo", "fp32"),
    ],
    "small": [*(("sft", way) for way in WAYS), ("sft uneven", "fp32"), ("sft uneven", "bf16")],
    "large": [
        ("sft", "bf16-mixed"),
        ("sft", "bf16"),
        ("sft", "lora, bf16 base, bf16-mixed, checkpointing"),
        ("dpo", "bf16-mixed"),
        ("grpo", "bf16-mixed"),
        ("ppo", "bf16-mixed"),
    ],
}
TOKENS = {"tiny": 128, "small": 1024, "medium": 1024, "large": 1024}
ROWS = 8
"""Rows of a micro-batch, each of TOKENS, of which an online stage samples SAMPLED itself."""
SAMPLED = {"tiny": 8, "small": 96, "medium": 96, "large": 48}


def measure(bench: Bench, shape: str, algorithm: str, way: str, rows: int) -> dict[str, Any]:
    """Three optimizer steps of two equal micro-batches; online ones make two, and sample their answers first."""
    length, sections = TOKENS[shape], {name: dict(section) for name, section in WAYS[way].items()}
    name = f"{shape} {algorithm} {way} {rows}".replace(" ", "-").replace(",", "")
    kind, _, reference = algorithm.removesuffix(" uneven").partition(" reference ")
    online, examples = kind in ONLINE, rows // 2 if kind in ("dpo", "reward_model") else rows
    steps, said = (2, SAMPLED[shape]) if online else (3, 3 * length // 4)
    lengths = [(length - said - AROUND, said)] * (2 * steps * examples)
    if algorithm.endswith(" uneven"):  # some shorter rows, and so a mask
        lengths[::4] = [(length - said - AROUND, said - said // 8)] * (len(lengths) // 4)
    file = write_rows(bench.work / f"{name}.jsonl", kind, lengths)
    # The number of examples decides what a micro-batch is, not the number of tokens.
    sizes = {"batch_size": 2 * examples, "micro_batch_size": examples, "micro_batch_tokens": 4 * rows * length}
    sections["train"] = {**sizes, "max_steps": steps, **sections.get("train", {})}
    if reference:
        sections["reference"] = {"type": reference}
    if online:
        sections["rollout"] = {"sampling": {"max_completion_length": said}}
    sections |= {"devices": {"accelerator": bench.device}, "optimizer": {"learning_rate": 1e-5}}
    run = run_of(ALGORITHMS[kind], model_in(bench.work, shape), file, bench.work / "runs" / name, **sections)
    scale, ready, preparing = weighed(run, steps)
    networks = [ready.model.policy, *([ready.model.critic] if ready.model.critic is not None else [])]
    every = [p for network in networks for p in network.parameters()]
    phases, peaks = max(s["between_peak"] for s in scale.steps), [s["step_peak"] for s in scale.steps]
    return {
        "peak_gib": round(max(phases, *peaks) / GIB, 3),
        "step_gib": round(peaks[-1] / GIB, 3),
        "phase_gib": round(phases / GIB, 3) if online else None,
        "shape": shape,
        "config": SHAPES[shape],
        "kept_logits_bytes": KEPT["cuda"],
        "stage": nameless(run.stages[0].model_dump(mode="json")),
        "max_tokens": said if online else None,
        "prompt_tokens": length - said - 2 if online else None,
        "answers_at_once": 2 * examples if online else None,
        "reference": ready.model.reference.kind if ready.model.reference is not None else None,
        "layout": ready.batcher.layout,
        "attention": ready.model.policy.unwrapped.config._attn_implementation,
        "parameters": sum(p.numel() for p in every),
        "trained": sum(p.numel() for p in every if p.requires_grad),
        "held_bytes": sum(p.numel() * p.element_size() for p in every),
        "bytes_at_start": scale.before,
        "bytes_before_first_step": scale.weights,
        "bytes_preparing_peak": preparing,
        "bytes_by_step": peaks,
        "bytes_between": [s["between_peak"] for s in scale.steps],
        "bytes_after": [s["after"] for s in scale.steps],
        "micros": scale.steps[-1]["micros"],
        "losses": [s["loss"] for s in scale.steps],
        "step_seconds": [s["step_seconds"] for s in scale.steps],
    }


def attention(bench: Bench) -> dict[str, Any]:
    """Numbers that scaled_dot_product_attention keeps for its backward beside what it is given, in T x T squares.

    A row of 1024 tokens with 16 heads: 16 squares are the scores of every head.
    """
    length, heads = 1024, 16
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=bench.device).tril()
    found = {}
    for dtype, kv, masked in itertools.product((torch.float32, torch.bfloat16), (heads, heads // 4), (False, True)):
        shapes = ((1, n, length, 64) for n in (heads, kv, kv))
        q, k, v = (torch.randn(s, device=bench.device, dtype=dtype, requires_grad=True) for s in shapes)
        before = allocated()
        how = {"attn_mask": mask} if masked else {"is_causal": True}
        output = functional.scaled_dot_product_attention(q, k, v, enable_gqa=kv != heads, **how)
        squares = (allocated() - before) / q.element_size() / length**2
        called = f"{str(dtype)[6:]}, {'grouped' if kv != heads else 'own'} keys, {'mask' if masked else 'causal'}"
        found[called] = f"{squares:.2f} squares, {type(output.grad_fn).__name__}"
    return found


def nameless(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage without this machine's paths."""
    stage["model"]["path"], stage["data"]["train"][0]["path"] = "model", "rows.jsonl"
    if stage["rollout"] is not None:
        stage["rollout"]["rewards"][0]["settings"]["file"] = "reward.py"
    return stage


def main(bench: Bench) -> None:
    """By size, the large one's logits weighing most; then other numbers of rows."""
    cases = {"tiny": CASES["medium"]} if bench.quick else CASES
    bench.check("attention: what is kept", partial(attention, bench))
    for shape, chosen in cases.items():
        for algorithm, way in chosen:
            do = partial(measure, bench, shape, algorithm, way, ROWS)
            bench.check(f"{shape}: {algorithm}, {way}", do)
    for shape, other in itertools.product(reversed(cases), (ROWS // 2, 2 * ROWS)):
        do = partial(measure, bench, shape, "sft", "bf16-mixed", other)
        bench.check(f"{shape}: sft, bf16-mixed, {other} rows", do)
