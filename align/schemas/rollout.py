"""The run file's ``rollout``: how an online stage samples answers, what scores them, and what is watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from align.schemas.base import Config
from align.schemas.choice import Choice, Plugin, spelt_out


class Sampling(Config):
    """How tokens are drawn: penalty, then temperature, then top-k, top-p and min-p in this order."""

    max_completion_length: PositiveInt = 256
    """Longest answer, in tokens (TRL's name)."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits; 0 takes the likeliest token (the lowest id among equals)."""
    top_k: NonNegativeInt = 0
    """Keep the k likeliest tokens (0: all)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest likeliest tokens that together reach this probability, at least one (1904.09751)."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keep tokens at least this share as likely as the likeliest (2407.01082)."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides positive and multiplies negative logits of tokens that occur in prompt or answer (1909.05858)."""
    stop: list[str] = Field(default_factory=list)
    """An answer ends as soon as its text contains one of these; the tokens up to there are kept."""
    stop_token_ids: list[NonNegativeInt] = Field(default_factory=list)
    """Token ids that end an answer, in addition to the model's own end tokens (vLLM's name)."""

    @property
    def neutral(self) -> bool:
        """Whether answers are drawn from the model's own distribution at this temperature, nothing cut away."""
        whole = self.top_k == 0 and self.top_p == 1 and self.min_p == 0
        return whole and self.repetition_penalty == 1 and self.temperature > 0


class RewardChoice(Choice):
    """A reward plugin with its weight in the sum: ``math``, or ``{type: length, weight: 0.1, target: 200}``."""

    weight: float = 1.0
    """What its score is multiplied by. Abstaining leaves the weighted mean: the other weights then count for it."""
    normalize: bool = False
    """Subtract the running mean of its scores and divide by their standard deviation."""
    timeout: PositiveFloat | None = None
    """Seconds for one answer. Given, or set by the plugin, the reward runs in killable worker processes."""


BESIDE_REWARD = frozenset(RewardChoice.model_fields) - {"settings"}
"""The keys of a reward that are not its plugin's settings."""

RewardPlugin = Annotated[RewardChoice, BeforeValidator(lambda value: spelt_out(value, BESIDE_REWARD))]


class Mismatch(Config):
    """Correction for a generator whose probabilities are not quite the trainer's: weights pi_trainer / pi_generator."""

    type: Literal["none", "truncate", "mask"] = "none"
    """``truncate``: weights are at most ``limit`` (truncated importance sampling). ``mask``: weights outside
    [1 / limit, limit] become 0."""
    level: Literal["token", "sequence"] = "token"
    """A weight for each token, or one for each answer."""
    length_normalized: bool = True
    """sequence only: the geometric mean over tokens, so that long answers do not lose their weight to rounding."""
    limit: Annotated[float, Field(gt=1)] = 2.0


class Watch(Config):
    """Alarms on the phases' metrics, each against the mean of the first phases (``warmup``)."""

    action: Literal["warn", "pause", "rollback"] = "warn"
    """``pause`` saves and stops (``--resume`` goes on); ``rollback`` ends the stage with the best checkpoint so far."""
    warmup: PositiveInt = 3
    """Phases that make the base line; no alarm before."""
    patience: PositiveInt = 2
    """Phases in a row that a threshold must be passed."""
    entropy: PositiveFloat | None = 0.3
    """Alarm where entropy falls below this share of its base line (collapse)."""
    kl: PositiveFloat | None = 0.5
    """Alarm where the mean KL to the reference, in nats a token, exceeds this (blow-up)."""
    length: PositiveFloat | None = 2.0
    """Alarm where the mean length exceeds its base line by this factor or falls below 1 / factor (drift)."""
    gold: PositiveFloat | None = 4.0
    """Reward hacking: alarm where the reward is above its base line and the gold reward below its best ``warmup``
    phases in a row, each by this many standard errors of the difference. (Below 4, chance alone raises it:
    docs/watching.md.)"""


class Rollout(Config):
    """How an online stage makes its own examples, phase by phase."""

    generator: Plugin = Choice(type="local")
    """A generator plugin: ``local`` (the policy itself), ``vllm``."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    rewards: Annotated[list[RewardPlugin], Field(min_length=1)]
    """Reward plugins with their weights."""
    gold: RewardPlugin | None = None
    """A reward that is measured and never learned from, to see whether the others are being gamed."""
    batches: PositiveInt = 1
    """Optimizer steps' worth of answers (``train.batch_size`` each) in one phase, all from the same weights."""
    dead_groups: Literal["keep", "drop", "refill"] = "keep"
    """Groups whose answers all got the same reward: stay (in the averages, with advantage 0), leave the averages, or
    are replaced by further prompts (dynamic sampling, DAPO 2503.14476)."""
    refill_tokens: PositiveInt | None = None
    """refill only: stop replacing after this many sampled tokens in a phase; default: three times the first round's."""
    mismatch: Mismatch = Mismatch()
    """Correction for generators with probabilities of their own."""
    sync_tolerance: PositiveFloat | None = None
    """Largest difference of log-probabilities between generator and trainer after weights were sent; default 1e-3 in
    float32, 0.25 in 16 bits."""
    watch: Watch = Watch()
    """Alarms."""
    samples: Literal["parquet", "none"] = "parquet"
    """Where each phase's answers are kept: ``STAGE/samples/phase-000001.parquet``."""
    show: NonNegativeInt = 0
    """Answers to print after each phase."""
