"""The interface of generators: prompts in, sampled completions with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from align.core.data.examples import Floats as Floats
from align.core.data.examples import Tokens as Tokens
from align.schemas.base import Config
from align.schemas.run import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.core.models.policy import Policy
    from align.schemas.run import Model


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete ``len(seeds)`` times.

    prompt: token ids [P]. seeds: one for each completion's random numbers, in [0, 2**63). A completion depends only on
    weights, prompt, sampling settings and its seed (beyond rounding), not on the other requests or the number of
    processes.
    """

    prompt: Tokens
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    tokens: the generated ids [T], T >= 1, up to and with the end token or the stop string's last token.
    logp:   log-probability of each [T] under the distribution that it was drawn from (temperature and truncation
            applied; at temperature 0 the model's own). Empty if a generator that is not trainable does not know it.
    finish: ``stop`` (an end token or a stop string) or ``length`` (cut off at max_completion_length).
    """

    tokens: Tokens
    logp: Floats
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """The model that a generator samples from.

    directory: a Hugging Face directory with the weights to begin with. ends: token ids that end a completion. context:
    largest number of tokens in prompt and completion together. policy: the trainer's own network, None outside
    training.
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

    Call order: ``open`` once, then any number of ``sync``, ``generate`` and ``logp``, then ``close`` (also after a
    failure). Every wait must have a limit; an engine's failure is raised as AlignError with the engine's own message.
    """

    name: ClassVar[str]
    """The name in a run file."""
    shares_weights: ClassVar[bool] = False
    """True if it samples from the trainer's own tensors, so that ``sync`` has nothing to do."""
    trainable: ClassVar[bool] = True
    """True if it can follow a policy in training; False: for judging, best-of-n and evaluation only."""

    decisive: ClassVar[frozenset[str]] = frozenset()
    """Settings that affect completions: a run cannot be resumed with other values of them."""

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, handle: ModelHandle) -> None:
        """Get ready to sample from a model. Raises AlignError if that cannot work."""
        raise NotImplementedError

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """Return the completions of each request, in the order of its seeds.

        stop: polled at least every few seconds; when it returns True, ``Interrupt`` is raised. on_token: called with
        (request index, completion index, token id) for every token as it is sampled, if the generator streams.
        """
        raise NotImplementedError

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Return the log-probability at temperature 1 of each completion token: [T] for each (prompt, completion)."""
        raise NotImplementedError

    def sync(self, policy: Policy, version: int) -> None:
        """Take over the policy's current weights, and drop caches that the old ones made.

        version: number of optimizer steps that made these weights. Every rank calls this.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release all resources; safe to call twice."""
