"""Annotations for length-controlled win rates, from sines so that any library's random numbers give the same ones."""

from __future__ import annotations

import numpy as np


def annotations(rows: int = 805) -> dict[str, np.ndarray]:
    """Preferences for a model that writes more and is preferred for it, and two gamed baselines after each other."""
    i = np.arange(rows)
    noise = [np.sin(12.9898 * i * (k + 1) + k) * 43758.5453 % 1 for k in range(6)]
    baseline = np.round(400 + 1600 * noise[0])
    model = np.round(baseline * (0.6 + 1.2 * noise[1]))
    difficulty = 4 * noise[2] - 2
    length = (baseline - model) / np.std(baseline - model, ddof=1)
    logits = 0.3 - 0.8 * np.tanh(length) + 0.5 * difficulty
    preference = np.clip(1 / (1 + np.exp(-logits)) + 0.9 * (noise[3] - 0.5), 0, 1)
    gamed_length = np.concatenate([-1.5 - noise[4], 1.5 + noise[5]])
    gamed = 1 / (1 + np.exp(0.9 * np.tanh(gamed_length)))
    return {
        "preference": preference,
        "baseline_length": baseline,
        "model_length": model,
        "difficulty": difficulty,
        "gamed_preference": gamed,
        "gamed_length": gamed_length,
    }
