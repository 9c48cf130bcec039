"""What the comparisons with TRL share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def settings(config: type, folder: Path, **more: Any) -> Any:
    """A TRL config for float32 on the CPU with everything else at TRL's defaults."""
    common = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    return config(output_dir=str(folder), **common | {"disable_tqdm": True, "save_strategy": "no"} | more)


def assert_same(
    wanted: tuple[float, dict[str, torch.Tensor]], got: tuple[float, dict[str, torch.Tensor]], rel: float = 1e-5
) -> None:
    """Loss and every parameter's gradient, relative to that gradient's norm."""
    assert got[0] == pytest.approx(wanted[0], rel=rel)
    assert got[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert float((gradient - got[1][name]).norm()) <= rel * float(gradient.norm()), name
