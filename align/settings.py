"""Types for settings of plugins, and the sections of the run file that plugins are given.

Derive your settings from ``align.Config``.
"""

from align.schemas.run import Choice, Fraction, Model, RewardChoice, RewardPlugin, Rollout, Sampling

__all__ = ["Choice", "Fraction", "Model", "RewardChoice", "RewardPlugin", "Rollout", "Sampling"]
