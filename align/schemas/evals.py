"""Suites of evals, and the policy by which a gate judges changes. Plain data, no torch."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from align.schemas.base import Config
from align.schemas.run import Choice, Plugin, Sampling, Source, expand_shorthand

Domain = Literal["chat", "instruction", "math", "knowledge", "code", "tools", "truth_safety", "retrieval", "custom"]
"""The part of a model's abilities that an eval measures; the gate decides domain by domain."""


class EvalChoice(Choice):
    """An eval plugin in a suite: ``ifeval``, or ``{type: mmlu, data: mmlu.jsonl, n: 500}``."""

    name: str | None = None
    """The name of its rows and metrics; by default the plugin's. Two entries of one suite need two names."""
    n: PositiveInt | None = None
    """Number of items (null: all). Items are taken in an order that follows from their ids alone, so a smaller number
    is a part of any larger one."""
    samples: PositiveInt = 1
    """Completions of each item (avg@k, maj@k, pass@k)."""
    domain: Domain | None = None
    """The domain that the gate counts it to; by default the plugin's."""


EVAL_KEYS = frozenset(EvalChoice.model_fields) - {"settings"}
"""The keys of an entry of a suite that are not its plugin's settings."""

EvalPlugin = Annotated[EvalChoice, BeforeValidator(lambda value: expand_shorthand(value, EVAL_KEYS))]
"""A setting that chooses an eval: its name, or a mapping with ``type``, the common keys and the eval's own settings."""


class Judge(Config):
    """The model that judges completions. Part of the instrument: two runs are compared only if they had the same."""

    model: str
    """A directory or hub id; with ``url`` the server's name for it."""
    url: str | None = None
    """An OpenAI-compatible server, ``https://api.example.com/v1``; plain http is for this machine only."""
    key_env: str | None = None
    """The environment variable that holds the server's API key."""
    generator: Plugin = Choice(type="local")
    """The generator that runs it, where there is no ``url``."""


class Suite(Config):
    """A suite file: the evals to run and what they share."""

    name: str = "suite"
    """Its name in reports."""
    evals: Annotated[list[EvalPlugin], Field(min_length=1)]
    """The evals, run in this order."""
    judge: Judge | None = None
    """The model that judges, for evals that need one."""
    seed: NonNegativeInt = 0
    """Seed of all draws, together with the item's id and the sample's number; the order of items does not matter."""
    max_invalid: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Largest share of an eval's verdicts that a judge may leave unreadable; above it the run fails."""


Margin = Annotated[float, Field(ge=1e-6)]
"""A loss to put up with. Above 0: no data shows that nothing at all was lost."""


class DomainPolicy(Config):
    """One gating domain: evals combined by weight, which together may lose no more than the margin."""

    margin: Annotated[float, Field(ge=1e-6, lt=1)]
    """Largest loss that is accepted, as a share of the scale (0.02: two points of accuracy)."""
    evals: Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    """Names of the evals with their weights in the domain's mean."""


class GatePolicy(Config):
    """A policy file: declared before the candidate is measured, versioned, and hashed in the report."""

    version: PositiveInt = 1
    """Its version, raised with every change."""
    domains: dict[str, DomainPolicy] = Field(default_factory=dict)
    """The gating domains, few: with more of them an unchanged model passes all of them less often."""
    safety: dict[str, Margin] = Field(default_factory=dict)
    """Evals of safety with their margins: each must be shown to be no worse, and losses are flagged by Holm."""
    watch: list[str] | None = None
    """Evals without a margin (null: all others of the run). A loss that is clear after Benjamini-Hochberg's correction
    is flagged."""
    on_watch: Literal["warn", "fail"] = "warn"
    """``fail``: a flagged loss on the watch list is a regression of the gate."""
    floors: dict[str, float] = Field(default_factory=dict)
    """Absolute floors by eval: the lower bound of the candidate's own score must reach them."""
    alpha: Annotated[float, Field(ge=1e-6, lt=0.5)] = 0.05
    """One-sided level of each margin, and the chance that an unchanged model is called regressed anywhere."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Chance to pass, for an unchanged model, that the rows needed are computed for."""
    least_power: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Below this chance a margin is refused."""
    minimum_loss: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the margin that must be lost to be called regressed; a clear but smaller loss lets the gate pass."""
    allow_underpowered: bool = False
    """Judge by margins that the data cannot support too."""
    max_invalid_increase: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest increase of the share of invalid rows, over all evals."""
    length_ratio: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    """Range of the ratio of mean output lengths, candidate to baseline; outside it there is a warning."""
    on_inconclusive: Literal["fail", "warn"] = "fail"
    """``warn``: an inconclusive gate ends with status 0."""
    matched: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Smallest share of rows that both runs must have, with equal prompts, targets and settings."""

    @property
    def named(self) -> list[str]:
        """The evals that the policy names anywhere, once each."""
        of_domains = (name for domain in self.domains.values() for name in domain.evals)
        return list(dict.fromkeys([*of_domains, *self.safety, *self.floors, *(self.watch or ())]))

    def judges(self, name: str) -> bool:
        """Return True for an eval that takes part: with a watch list only those that the policy names do."""
        return self.watch is None or name in self.named

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.length_ratio[0] < self.length_ratio[1]:
            raise ValueError("length_ratio must rise, as in [0.8, 1.25]")
        held = Counter([*(name for each in self.domains.values() for name in each.evals), *self.safety])
        if twice := [name for name, times in held.items() if times > 1]:
            raise ValueError(f"domains and safety hold the eval {twice[0]!r} twice; it can have one margin only")
        return self


class EvalSettings(Config):
    """Settings of most evals; an eval's ``Config`` derives from it and adds its own."""

    data: str
    """The published file: a path, a directory of such files, or a hub id."""
    split: str = "test"
    """Split of a hub dataset or a directory."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Rename the file's columns, where it has other names than the published one: ``{question: prompt}``."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Settings of ``sampling`` in a run file, in place of the protocol's own (which the eval's page names)."""

    @field_validator("sampling")
    @classmethod
    def _known(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        """Refuse what are no settings of sampling where the suite is read, before anything is measured."""
        Sampling.model_validate(sampling)
        return sampling

    @property
    def source(self) -> Source:
        """The data as a source of rows."""
        return Source(path=self.data, split=self.split, subset=self.subset, columns=self.columns)

    def sampled(self, default: Sampling) -> Sampling:
        """Return the protocol's sampling settings with the user's in their place. Raises ValueError for wrong ones."""
        return Sampling.model_validate({**default.model_dump(), **self.sampling})
