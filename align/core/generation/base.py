"""The contract of generators: prompts in, sampled answers with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from align.schemas.base import Config
from align.schemas.run import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.core.models.policy import Policy
    from align.schemas.run import Model

Tokens = NDArray[np.int32]
"""Token ids of one prompt or completion, [T]."""
Floats = NDArray[np.float32]
"""Log-probabilities, or other numbers, of the tokens of one completion, [T]."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer ``len(seeds)`` times.

    seeds: of each answer's own random numbers, in [0, 2**63). An answer follows from weights, prompt, sampling settings
    and its seed (beyond rounding): not from what is sampled beside it, nor from the number of processes.
    """

    prompt: Tokens
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    tokens: what was generated, with the end token or the stop string's last token where one ended it; at least one.
    logp:   log-probability of each under the distribution that it was drawn from (temperature and truncation applied;
            at temperature 0 under the model's own). Empty where a generator that is not trainable cannot tell.
    finish: ``stop`` (an end token or a stop string) or ``length`` (cut off at max_completion_length).
    """

    tokens: Tokens
    logp: Floats
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """The model that a generator samples from.

    directory: a Hugging Face directory with the weights that it begins with. policy: the trainer's own network, None
    outside training. ends: token ids that end an answer. context: most tokens of prompt and answer together.
    """

    directory: Path
    model: Model
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    context: int
    policy: Policy | None = None


class Interrupt(Exception):
    """Raised by ``generate`` when it was asked to stop."""


class Generator:
    """Base class of generators: subclass, set ``name``, write the five methods.

    ``open`` once, then any number of ``sync``, ``generate`` and ``logp``, then ``close`` (also after a failure). Every
    wait is bounded; what goes wrong in an engine is raised as AlignError with the engine's own words.
    """

    name: ClassVar[str]
    """What a run file calls it."""
    shares_weights: ClassVar[bool] = False
    """It samples from the trainer's own tensors: ``sync`` has nothing to do and nothing can be stale."""
    trainable: ClassVar[bool] = True
    """Whether it can follow a policy in training; False: for judging, best-of-n and evaluation only."""

    decisive: ClassVar[frozenset[str]] = frozenset()
    """Settings that decide which model answers, and how: a run does not go on with others."""

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, handle: ModelHandle) -> None:
        """Get ready to speak for a model."""
        raise NotImplementedError

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """The answers of each request, in the order of its seeds.

        stop: polled at least every few seconds; when true, ``Interrupt`` is raised. on_token: called with
        (request, answer, token) for every token as it comes, if the generator streams.
        """
        raise NotImplementedError

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Log-probability of every token of the answers at temperature 1, given (prompt, answer) pairs."""
        raise NotImplementedError

    def sync(self, policy: Policy, version: int) -> None:
        """Take over the policy's weights as they are now; what is cached of the old ones is dropped.

        version: the optimizer step that they are of. Every rank calls it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back; safe to call twice."""
