"""The contract of online algorithms: two choices, credit (rewards -> advantages) and token loss.

    prompts -> answers -> rewards -> [log-probabilities, values] -> credit -> examples -> the same step as offline

Everything but credit and loss is the engine's: sampling, scoring, dead groups, measuring, the averages, resuming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from align.core.algorithm.base import Algorithm, CriticSpec
from align.core.data.examples import Example, TokenSequence
from align.core.generation.base import Floats, Tokens
from align.schemas.errors import AlignError
from align.schemas.records import Content, Kind
from align.schemas.run import Rollout


@dataclass(slots=True)
class Experience:
    """One sampled answer and all that is known of it. T tokens in the answer.

    reward      the weighted mean of what its rewards said; None where all of them abstained
    parts       what each reward said, by name; None where it abstained
    sampled_logp, logp, ref_logp   log-probability [T] of each token under the generator, the trainer's policy before
                the phase's first step, and the reference; at the sampling temperature. None where not measured
    value       [T] the critic's value of the state before each token (prompt and the tokens until then)
    size        sum of the absolute values of the numbers that were added up to the reward; bounds its rounding
    """

    source: str
    prompt: Tokens
    tokens: Tokens
    finish: Literal["stop", "length"]
    sampled_logp: Floats
    reward: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    logp: Floats | None = None
    ref_logp: Floats | None = None
    value: Floats | None = None
    size: float = 0.0


Group = Sequence[Experience]
"""The answers to one prompt."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantages of all completions of a phase, in the order of the groups' completions flattened.

    token_data: numbers for each token, each a list of [T_i] arrays; ``advantage`` by convention. Names become
    ``Batch.token_data``.
    keep: [N] False leaves a completion out of the loss and of every average (it was cut off, or nobody scored it).
    metrics: to log once a phase.
    """

    token_data: Mapping[str, Sequence[Floats]]
    keep: NDArray[np.bool_]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Online(Algorithm):
    """An algorithm that learns from answers it samples itself: write ``compute_advantages`` and ``loss``.

    ``Batch.token_data`` has what ``compute_advantages`` gave, and where measured ``old_logp`` (the trainer's before
    the phase's first step) and ``weight`` (the correction for the generator, see
    ``align.schemas.run.ImportanceSamplingCorrection``).
    """

    learns_from: ClassVar[tuple[Kind, ...]] = ("prompt",)
    samples: ClassVar[bool] = True
    goal: ClassVar[tuple[str, Literal["min", "max"]]] = ("reward", "max")
    dropout: ClassVar[bool] = False
    uses_ratio: ClassVar[bool] = True
    """True if the loss assumes that completions come from the policy itself: truncated sampling is then refused."""

    class Config(Algorithm.Config):
        """Settings in the run file."""

    rollout: Rollout
    """The stage's rollout settings (``configure``)."""

    @property
    def num_generations(self) -> int:
        """Answers sampled for each prompt: the setting of that name, where there is one, else 1."""
        return int(getattr(self.config, "num_generations", 1))

    @property
    def num_iterations(self) -> int:
        """Times that each phase's answers are learned from: the setting of that name, where there is one, else 1."""
        return int(getattr(self.config, "num_iterations", 1))

    @property
    def uses_reference(self) -> bool:
        """For a KL that costs something: the setting ``beta``, where there is one."""
        return float(getattr(self.config, "beta", 0.0)) > 0

    @property
    def measures_logp(self) -> bool:
        """True if ``compute_advantages`` needs the trainer's log-probabilities.

        A phase of several steps has them measured in any case, for the ratios.
        """
        return False

    @property
    def compares(self) -> bool:
        """Return whether only differences within a group are learned from, so that a group of equal rewards is dead."""
        return True

    @property
    def critic(self) -> CriticSpec | None:
        """The value model it wants."""
        return None

    def configure(self, rollout: Rollout) -> None:
        """Told the stage's rollout settings before anything else; raises AlignError where they do not go together."""
        self.rollout = rollout
        if self.uses_ratio and not rollout.sampling.neutral:
            raise AlignError(
                f"{self.name} weighs tokens by their probability under the policy, and this sampling draws them from "
                "another distribution",
                "leave top_k, top_p, min_p and repetition_penalty at their defaults and temperature above 0",
                where="rollout.sampling",
            )

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Rewards to advantages, once a phase, with all its answers from all ranks. Equal on every rank.

        May change the algorithm's own state (a KL controller).
        """
        raise NotImplementedError

    def examples(self, groups: Sequence[Group], advantages: Advantages) -> list[list[Example]]:
        """Return the examples of each group: by default one for each completion that ``compute_advantages`` keeps."""
        made: list[list[Example]] = []
        place = 0
        for group in groups:
            made.append([])
            for experience in group:
                if advantages.keep[place]:
                    token_data = {name: values[place] for name, values in advantages.token_data.items()}
                    made[-1].append(example_of(experience, token_data))
                place += 1
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return the state that ``compute_advantages`` keeps from phase to phase: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class RowGenerator(Online):
    """An algorithm that learns nothing: its answers become rows for a later stage (``data.train: stage:NAME``)."""

    makes_rows: ClassVar[bool] = True
    uses_ratio: ClassVar[bool] = False

    def rows(self, prompt: Content, answers: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
        """Return the rows that one prompt gives, from the (text, reward) of its answers that were not cut off."""
        raise NotImplementedError

    def curves(self, rewards: Sequence[Sequence[float | None]]) -> dict[str, float]:
        """Return metrics of the stage from all prompts' rewards, [prompts][num_generations]."""
        raise NotImplementedError


def example_of(experience: Experience, token_data: Mapping[str, Floats], role: str = "completion") -> Example:
    """An answer as an example with one sequence, its tokens scored."""
    return Example(experience.source, (sequence_of(experience, token_data, role),))


def sequence_of(experience: Experience, token_data: Mapping[str, Floats], role: str = "completion") -> TokenSequence:
    """Return prompt and completion as one sequence, the completion's tokens scored."""
    tokens = np.concatenate([experience.prompt, experience.tokens]).astype(np.int32)
    scored = np.arange(len(tokens)) >= len(experience.prompt)
    return TokenSequence(role, tokens, scored, experience.ref_logp, dict(token_data))
