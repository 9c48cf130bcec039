"""Advice, as data: ``align.advice/1``. Text, Markdown, HTML and SARIF are rendered from it and from nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from align.schemas.base import Config

Primary = Literal["prompting", "rag", "continual_pretraining", "post_training", "insufficient"]
Confidence = Literal["high", "medium", "low"]
Level = Literal["error", "warning", "note"]


class _AdviceModel(Config):
    """The base of advice. Its field docstrings are for readers only: collecting them would slow down every start."""

    model_config = ConfigDict(use_attribute_docstrings=False)


class Quote(_AdviceModel):
    """Quoted words that a reason rests on."""

    fact: str
    """``behaviour.rules_count = 27``."""
    quote: str
    span: tuple[int, int] | None = None
    """Characters of the description, half-open; null for a form."""
    source: str
    """description, form, a file's name, answers, measured."""


class Reason(_AdviceModel):
    """A rule that fired."""

    rule: str
    rubric: str
    option: str
    weight: Literal["hard", "soft", "veto"]
    because: str
    quotes: list[Quote]
    """At least one."""
    flips_if: str


class PlanStep(_AdviceModel):
    """One stage of the plan."""

    stage: str
    """prompting, rag, continual_pretraining, or an algorithm: sft, dpo, kto, reward_model, grpo, rloo, ppo,
    best_of_n."""
    why: list[str]
    """Rule ids."""
    optional: bool = False
    needs: str = ""
    """The data or scorer still missing for it."""


class FirstExperiment(_AdviceModel):
    """The cheapest experiment that could show training to be needless."""

    what: str
    cost: str
    stop_if: str


class Alternative(_AdviceModel):
    """An option that is not advised, and the change that would make it the better one."""

    option: str
    rank: int
    because: str
    flips_if: str
    what_if: list[str] = Field(default_factory=list)
    """The same change as ``--what-if`` settings, where it can be expressed so: ``behaviour.rules_count=25``."""


class Assumption(_AdviceModel):
    """A number that the brief does not give."""

    fact: str
    why: str
    effect: str


class OpenQuestion(_AdviceModel):
    """A question about an unknown fact that matters."""

    id: str
    field: str
    question: str
    would_change: str


class DataRequirement(_AdviceModel):
    """Data needed against given."""

    need: str
    unit: Literal["rows", "tokens", "docs"]
    floor: int
    comfortable: int
    given: int | None
    verdict: Literal["ok", "thin", "too_little", "missing", "unknown"]
    lint: str = ""
    """The command that checks it."""


class AlgorithmSettings(_AdviceModel):
    """The algorithm and tuning of a stage, and the settings to start from."""

    stage: str
    name: str
    tuning: Literal["full", "lora", "qlora"]
    start: dict[str, Any]
    """Keys of the run file with their values: ``optimizer.learning_rate``."""
    source: str


class Fit(_AdviceModel):
    """The memory of one plan on one device, by component, in GB (10^9 bytes)."""

    strategy: str
    verdict: Literal["fits", "tight", "does_not_fit"]
    per_gpu_gb: dict[str, float]
    total_gb: float
    short_gb: float
    """Memory that is missing; negative: memory to spare."""
    knob: str = ""
    """The cheapest remedy."""


class HardwareFit(_AdviceModel):
    """The hardware given, and the memory plans that fit it."""

    given: str
    capacity_gb: float | None
    chosen: Fit | None
    rejected: list[Fit] = Field(default_factory=list)
    asked: Fit | None = None
    """The plan requested, where one was."""


class Range(_AdviceModel):
    """A range from low to high."""

    low: float
    high: float


class Estimate(_AdviceModel):
    """The resources needed, as ranges: efficiency is not known beforehand."""

    tokens: Range | None = None
    flops: Range | None = None
    gpu_hours: Range | None = None
    wall_hours: Range | None = None
    cost: Range | None = None
    """Cost in ``currency`` by the user's price file; null without one."""
    currency: str = ""
    basis: str = ""
    """The method of computation, in a sentence."""


class AdviceWarning(_AdviceModel):
    """A warning of a rule."""

    id: str
    level: Level
    text: str
    rule: str
    quotes: list[Quote] = Field(default_factory=list)


class EvalPlan(_AdviceModel):
    """The evaluation that a model must pass before it ships."""

    target: list[str]
    guard: list[str]
    rule: str
    """The decision rule, in words."""
    min_rows: int
    """Held-out rows at which the effect wanted can be seen."""
    detectable: float | None = None
    """The smallest effect, as a share, that the rows on hand can show; null where rows are unknown."""


class Requested(_AdviceModel):
    """The method requested against the method advised."""

    requested: str
    recommended: str
    agrees: bool
    blocking: bool
    because: str


class Disagreement(_AdviceModel):
    """Two sources that contradict each other on one fact."""

    fact: str
    taken: str
    dropped: str


class UnderstoodFact(_AdviceModel):
    """One fact as it was understood, before anything is concluded from it."""

    topic: Literal["goal", "behaviour", "knowledge", "data", "scorer", "model", "hardware", "constraints", "evals"]
    setting: str
    """The fact as ``--set`` takes it: ``behaviour.rules_count=27``, ``data.0.kind=preference_pairs``."""
    text: str
    """The fact in words: ``27 rules at once``."""
    quotes: list[Quote]
    """The words it rests on."""


class OtherReading(_AdviceModel):
    """Another reading of the description that leads to another answer."""

    primary: Primary
    probability: float
    """Calibrated, 0 to 1."""
    facts: list[Quote]
    """The facts that this reading takes otherwise, with their words."""
    settings: list[str]
    """The same as ``--set`` settings."""
    question: str
    """The question whose answer decides between the two."""


class Provenance(_AdviceModel):
    """Hashes of everything the advice depends on: equal hashes give equal bytes."""

    tool: str
    rules: str
    thresholds: str
    parser: str
    input: str


class Advice(_AdviceModel):
    """Advice on a project: whether to train, what, with which data and hardware, and what is missing."""

    schema_: Literal["align.advice/1"] = Field("align.advice/1", alias="schema", serialization_alias="schema")
    primary: Primary
    confidence: Confidence
    probability: float | None = None
    """Calibrated probability that the answer is right, as read from free words; null where none were read."""
    understood: list[UnderstoodFact] = Field(default_factory=list)
    """What was read, by topic; shown before the answer, so that a misreading is seen at once."""
    other_readings: list[OtherReading] = Field(default_factory=list)
    """Readings nearly as likely that lead to another answer, the likeliest first."""
    summary: str
    """The answer in a sentence or two."""
    plan: list[PlanStep]
    companions: list[str]
    """Options to be combined with the primary: rag, post_training, prompting, continual_pretraining."""
    first_try: FirstExperiment | None
    alternatives: list[Alternative]
    reasons: list[Reason]
    assumptions: list[Assumption]
    missing: list[OpenQuestion]
    data: list[DataRequirement]
    algorithms: list[AlgorithmSettings]
    hardware: HardwareFit | None
    estimate: Estimate | None
    warnings: list[AdviceWarning]
    evals: EvalPlan | None
    requested: Requested | None
    conflicts: list[Disagreement]
    not_understood: list[str]
    """Input that was left unread or rejected: an unsupported language, an unproved quote."""
    provenance: Provenance

    @property
    def blocking(self) -> list[str]:
        """The ids of rules and error-level warnings that should stop a launch."""
        rules = ["requested-differs"] if self.requested is not None and self.requested.blocking else []
        return rules + [warning.id for warning in self.warnings if warning.level == "error"]
