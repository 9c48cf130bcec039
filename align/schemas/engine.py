"""Numbers of the engine that estimates have to know too: the engine runs by them, the adviser reckons with them."""

from __future__ import annotations

MICRO_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Tokens of a forward pass where the run file does not say, by accelerator. A CPU gets no faster past that. An H200
trains 336M parameters at 36,000, 77,000 and 93,000 tokens a second with 4,096, 8,192 and 16,384 (benchmarks/gpu), and
memory grows with them."""

LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Logits made at a time, by accelerator: 64 MiB in float32, on a GPU 256 MiB. Each chunk reads and writes the head's
whole gradient, so a device with more arithmetic per byte wants more tokens in one. On an H200 2^26 takes 0.54 of the
time of 2^24 and 2^28 0.44, with a head of 263M numbers that learns (benchmarks/gpu)."""

REPLICA_SHARE = 0.7
"""Share of a device's memory that weights, gradients and moments may take for ``auto`` to choose ddp over fsdp. The
rest is for activations, whose size is not known before the first step."""
