"""The warning of bfloat16 on a processor without instructions for it."""

from __future__ import annotations

import pytest
import torch

from align.core.util.detect_hardware import slow_precision
from align.schemas.hardware import Hardware

NEITHER = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("accelerator", "precision", "dtype", "has", "where"),
    [
        ("cpu", "bf16-mixed", "float32", NEITHER, "train.precision: bf16-mixed"),
        ("cpu", "bf16-true", "bfloat16", NEITHER, "train.precision: bf16-true"),
        ("cpu", "32-true", "bfloat16", NEITHER, "model.dtype: bfloat16"),
        ("cpu", "32-true", "float32", NEITHER, None),
        ("cuda", "bf16-mixed", "float32", NEITHER, None),
        ("cpu", "bf16-mixed", "float32", NEITHER | {"avx512_bf16": True}, None),
        ("cpu", "bf16-mixed", "float32", NEITHER | {"amx_bf16": True}, None),
        ("cpu", "bf16-mixed", "float32", NEITHER | {"architecture": "aarch64"}, None),
    ],
)
def test_bfloat16_without_instructions_for_it_is_warned_of(
    accelerator: str,
    precision: str,
    dtype: str,
    has: dict[str, object],
    where: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    hardware = Hardware(accelerator, 1, 1, 2**30)  # type: ignore[arg-type]
    found = slow_precision(hardware, precision, dtype)
    assert [problem.where for problem in found] == ([] if where is None else [where])
    assert all(problem.level == "warning" and "8 times slower" in problem.what for problem in found)


def test_the_processor_here_is_asked() -> None:
    has = torch.cpu.get_capabilities()
    hardware = Hardware("cpu", 1, 1, 2**30)
    knows = has["architecture"] != "x86_64" or has["avx512_bf16"] or has["amx_bf16"]
    assert bool(slow_precision(hardware, "bf16-mixed", "float32")) == (not knows)
