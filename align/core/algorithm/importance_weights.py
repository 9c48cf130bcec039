r"""Correction for a generator whose probabilities are not quite the trainer's. Answer i has T_i tokens.

    d_it = log pi_trainer(y_it) - log pi_generator(y_it)

    w_it = exp(d_it)                    level token
    w_i  = exp(sum_t d_it)              level sequence, the importance ratio of the whole answer
    w_i  = exp(mean_t d_it)             level sequence, length-normalised: the geometric mean of the tokens' ratios

    truncate   min(w, clip_max)                                   truncated importance sampling, Ionides 2008
    mask       w where 1 / clip_max <= w <= clip_max, else 0      (IcePop, 2510.18855, for tokens)

What the cut costs, over the n weights (tokens, or answers) before (w) and after it (w'):

    effective_sample_size = (sum w')^2 / (n sum w'^2)    1 where all weigh the same (Kong 1992)
    lost_mass             = 1 - sum w' / sum w           the share of the importance mass that was cut away

The product over a long answer loses most of its mass to rounding alone: independent gaps of standard deviation 0.02
make log w normal with deviation 1.28 at 4,096 tokens. Then 7 % of the answers lie above a limit of 3, with 41 % of the
mass; the length-normalised ratio stays within 0.2 % of 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from align.core.algorithm.contract import Experience
from align.core.generation.generator_base import Floats
from align.schemas.run import ImportanceSamplingCorrection

Wide = NDArray[np.float64]

_FARTHEST = 300.0
"""Log weights are held within this, where a weight is as good as 0 or infinite and its square still a float64."""


def weights(
    experiences: Sequence[Experience], settings: ImportanceSamplingCorrection
) -> tuple[list[Floats] | None, dict[str, float]]:
    """A weight for each token ([T_i] for each answer; None for type none), and the metrics ``sampling/...``.

    The metrics have TRL's names and meanings: the difference is |d| over tokens, the ratio is after the cut, over
    tokens or answers. For type none they show what would be corrected. Nothing measured, or no token: no metrics.

    Raises ValueError where some answers were measured by the trainer and others not, or none were and a correction is
    asked for.
    """
    measured = [e for e in experiences if e.logp is not None]
    if len(measured) not in (0, len(experiences)) or (experiences and not measured and settings.type != "none"):
        raise ValueError("every answer needs the trainer's log-probabilities")
    gaps = [np.subtract(e.logp, e.sampled_logp, dtype=np.float64) for e in measured if e.logp is not None]
    if not sum(map(len, gaps)):
        return (None if settings.type == "none" else [np.ones(0, np.float32) for _ in gaps]), {}

    flat, lengths = np.concatenate(gaps), np.array([len(gap) for gap in gaps])
    whole = np.exp(np.clip(_log_weights(flat, lengths, settings), -_FARTHEST, _FARTHEST))
    kept = _cut(whole, settings)
    metrics = {
        "sampling/sampling_logp_difference/mean": float(np.abs(flat).mean()),
        "sampling/sampling_logp_difference/max": float(np.abs(flat).max()),
        "sampling/importance_sampling_ratio/min": float(kept.min()),
        "sampling/importance_sampling_ratio/mean": float(kept.mean()),
        "sampling/importance_sampling_ratio/max": float(kept.max()),
        "sampling/effective_sample_size": float(kept.sum() ** 2 / max(len(kept) * (kept**2).sum(), 1e-300)),
        "sampling/lost_mass": float(1 - kept.sum() / whole.sum()),
    }
    if settings.type == "none":
        return None, metrics
    spread = kept if settings.level == "token" else np.repeat(kept, lengths)
    return np.split(spread.astype(np.float32), np.cumsum(lengths)[:-1]), metrics


def _log_weights(gaps: Wide, lengths: NDArray[np.int64], settings: ImportanceSamplingCorrection) -> Wide:
    """Return the logs of the weights: of tokens [sum T] or of completions [N]; one without tokens weighs 1."""
    if settings.level == "token":
        return gaps
    answer = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(answer, weights=gaps, minlength=len(lengths)).astype(np.float64)
    return total / np.maximum(lengths, 1) if settings.length_normalized else total


def _cut(whole: Wide, settings: ImportanceSamplingCorrection) -> Wide:
    """Return the weights truncated or masked. NaN stays NaN, so that the check of finite numbers sees it."""
    if settings.type == "truncate":
        return np.minimum(whole, settings.clip_max)
    if settings.type == "mask":
        return np.where((whole < 1 / settings.clip_max) | (whole > settings.clip_max), 0.0, whole)
    return whole
