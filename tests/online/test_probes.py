"""Worlds with a known optimum: every online algorithm comes to at least 95 % of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.core.training.launch import train
from tests.online.probes import PROBES, probe_run, save_word_model

ALGORITHMS: dict[str, tuple[int, dict[str, Any]]] = {
    "rloo": (60, {"beta": 0.0}),
    "reinforce": (80, {"beta": 0.0}),
    "grpo": (60, {}),
    "ppo": (160, {"beta": 0.0, "critic_learning_rate": 1e-2}),
    "online_dpo": (80, {}),
}
"""Optimizer steps on the two easy probes (three times as many on the third), and settings: without a KL to the random
model that it begins as, whose price would move the optimum."""
RATES = {"ppo": 1e-3}
"""Learning rates where 3e-3 is too high: at it PPO's several passes settle on the wrong word of one prompt in half of
the seeds (tried on six), with 1e-3 in none of four."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_model(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_optimum_is_found(
    name: str, probe: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged on the answers that the last phase sampled, not on the likeliest ones."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    steps, settings = ALGORITHMS[name]
    steps *= 3 if probe == "at_the_end" else 1
    rate = RATES.get(name, 3e-3)
    run = probe_run(probe, {"type": name, **settings}, model, tmp_path / "run", steps, rate)
    (result,) = train(run, progress=False)
    assert result.metrics["reward"] >= 0.95
