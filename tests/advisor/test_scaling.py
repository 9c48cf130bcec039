"""The cost of many GPUs: held against published runs, by hand, and the table in the manual."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.advisor.estimate.model_shape import ModelShape
from align.advisor.estimate.scaling import (
    LINK,
    REACHED,
    scaled_step,
    sync_seconds,
    tokens_to_hide_traffic,
    traffic_bytes,
)
from align.schemas.gpus import devices

H100, A100 = devices()["H100"], devices()["A100-80"]


def llama(layers: int, hidden: int, intermediate: int, heads: int) -> ModelShape:
    return ModelShape(
        layers=layers, hidden=hidden, intermediate=intermediate, vocab=128_256, heads=heads, kv_heads=8, head_dim=128,
        tied=False,
    )  # fmt: skip


SHAPES = {
    "8B": llama(32, 4096, 14_336, 32),
    "70B": llama(80, 8192, 28_672, 64),
    "405B": llama(126, 16_384, 53_248, 128),
}


@pytest.mark.parametrize(
    ("size", "count", "tokens", "published"),
    [
        # torchtitan docs/performance.md, tables 1 and 3: FSDP2, 2 rows of 8,192; plain, and compiled
        ("8B", 8, 16_384, 5762),
        ("8B", 8, 16_384, 6667),
        ("8B", 128, 16_384, 5605),
        ("8B", 128, 16_384, 6514),
        # its earlier table: 128 H100, FSDP 16 x TP 8, 2 rows of 8,192 for 8 GPUs, full checkpointing
        ("405B", 128, 16_384, 109),
    ],
)
def test_published_tokens_a_second_of_a_gpu(size: str, count: int, tokens: int, published: float) -> None:
    low, high = scaled_step(SHAPES[size], H100, count, tokens).tokens_per_second
    assert low <= published * count <= high


def test_traffic_that_is_hidden_costs_nothing_and_cost_three_percent() -> None:
    """From 8 to 128 GPUs torchtitan lost 2.7% (5,762 to 5,605 tokens a second and GPU); here nothing is lost."""
    few, many = (scaled_step(SHAPES["8B"], H100, count, 16_384) for count in (8, 128))
    assert many.tokens_per_second[0] == pytest.approx(16 * few.tokens_per_second[0]) and many.bound == "arithmetic"
    assert many.traffic < 0.2 * many.arithmetic[0]  # little enough that 3% of it shows


def test_an_a100_reaches_more_of_its_smaller_peak() -> None:
    """torchtitan, 64 A100, FSDP2: 2,904 (8B) and 331 (70B) tokens a second and GPU, above the range for any GPU."""
    for size, published in (("8B", 2904), ("70B", 331)):
        _, high = scaled_step(SHAPES[size], A100, 64, 8192).tokens_per_second
        assert 1.2 < 64 * published / high < 1.4


def test_by_hand() -> None:
    shape = SHAPES["70B"]
    assert traffic_bytes(shape, 8) == 0 and traffic_bytes(shape, 16) == 4 * shape.params
    step = scaled_step(shape, H100, 64, 1000, mfu=(0.25, 0.5))
    assert step.arithmetic[1] == pytest.approx(8 * shape.params * 1000 / (989e12 * 0.25)) == 2 * step.arithmetic[0]
    assert step.traffic == pytest.approx(8 * shape.params * 7 / 8 / (LINK * REACHED))
    assert step.bound == "traffic" and step.seconds == (max(step.traffic, step.arithmetic[0]), step.arithmetic[1])
    assert step.tokens_per_second == (64_000 / step.seconds[1], 64_000 / step.seconds[0])
    assert step.state == 16 * shape.params / 64
    assert scaled_step(shape, H100, 64, 1000, strategy="ddp").state == 16 * shape.params
    assert sync_seconds(shape) == pytest.approx(2 * shape.params / (LINK * REACHED))


@pytest.mark.parametrize("link", [LINK, LINK / 32])
def test_fewest_tokens_that_hide_the_traffic(link: float) -> None:
    """At them both take as long, on very many machines; and the number is the same for every size."""
    fewest = {size: tokens_to_hide_traffic(shape, H100, link=link) for size, shape in SHAPES.items()}
    assert len({round(tokens, 6) for tokens in fewest.values()}) == 1
    step = scaled_step(SHAPES["8B"], H100, 8 * 10**6, fewest["8B"], mfu=(0.4, 0.4), link=link)
    assert step.traffic == pytest.approx(step.arithmetic[0], rel=1e-5)


def test_a_device_without_a_peak_is_refused() -> None:
    unknown = next(device for device in devices().values() if device.peak is None)
    with pytest.raises(ValueError, match="peak"):
        scaled_step(SHAPES["8B"], unknown, 8, 1000)


def test_the_table_of_the_manual() -> None:
    text = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text()
    rows = re.findall(r"^\| (8B|70B|405B) \| (\S+) \| (.+?) GB \| (\S+) to (\S+) \| (\S+) to (\S+) \|", text, re.M)
    assert len(rows) == 8
    for size, count, state, *found in rows:
        number = int(count.replace(",", ""))
        step = scaled_step(SHAPES[size], H100, number, 8192)
        low, high = step.tokens_per_second
        hours = [1e9 / rate * number / 3600 for rate in (high, low)]
        wanted = [step.state / 1e9, low / 1e3, high / 1e3, *hours]
        given = [float(each.replace(",", "").rstrip("k")) for each in (state, *found)]
        assert given == pytest.approx(wanted, rel=0.02), (size, count)
