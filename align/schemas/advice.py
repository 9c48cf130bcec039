"""Advice, as data: ``align.advice/1``. Text, Markdown, HTML and SARIF are rendered from it and from nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from align.schemas.base import DeferredConfig

Primary = Literal["prompting", "rag", "continual_pretraining", "post_training", "insufficient"]
Confidence = Literal["high", "medium", "low"]
Level = Literal["error", "warning", "note"]


class Quote(DeferredConfig):
    """Quoted words that a reason rests on."""

    fact: str
    """``behaviour.rules_count = 27``."""
    quote: str
    span: tuple[int, int] | None = None
    """Characters of the description, half-open; null for a form."""
    source: str
    """description, form, a file's name, answers, measured."""


class Reason(DeferredConfig):
    """A rule that fired."""

    rule: str
    rubric: str
    option: str
    weight: Literal["hard", "soft", "veto"]
    because: str
    quotes: list[Quote]
    """At least one."""
    flips_if: str


class PlanStep(DeferredConfig):
    """One stage of the plan."""

    stage: str
    """prompting, rag, continual_pretraining, or an algorithm: sft, dpo, kto, reward_model, grpo, rloo, ppo,
    best_of_n."""
    why: list[str]
    """Rule ids."""
    optional: bool = False
    needs: str = ""
    """The data or scorer still missing for it."""


class FirstExperiment(DeferredConfig):
    """The cheapest experiment that could show training to be needless."""

    what: str
    cost: str
    stop_if: str


class Alternative(DeferredConfig):
    """An option that is not advised, and the change that would make it the better one."""

    option: str
    rank: int
    because: str
    flips_if: str
    what_if: list[str] = Field(default_factory=list)
    """The same change as ``--what-if`` settings, where it can be expressed so: ``behaviour.rules_count=25``."""


class Assumption(DeferredConfig):
    """A number that the brief does not give."""

    fact: str
    why: str
    effect: str


class OpenQuestion(DeferredConfig):
    """A question about an unknown fact that matters."""

    id: str
    field: str
    question: str
    would_change: str


class DataRequirement(DeferredConfig):
    """Data needed against given."""

    need: str
    unit: Literal["rows", "tokens", "docs"]
    floor: int
    comfortable: int
    given: int | None
    verdict: Literal["ok", "thin", "too_little", "missing", "unknown"]
    lint: str = ""
    """The command that checks it."""


class AlgorithmSettings(DeferredConfig):
    """The algorithm and tuning of a stage, and the settings to start from."""

    stage: str
    name: str
    tuning: Literal["full", "lora", "qlora"]
    start: dict[str, Any]
    """Keys of the run file with their values: ``optimizer.learning_rate``."""
    source: str


class Fit(DeferredConfig):
    """The memory of one plan on one device, by component, in GB (10^9 bytes)."""

    strategy: str
    verdict: Literal["fits", "tight", "does_not_fit"]
    per_gpu_gb: dict[str, float]
    total_gb: float
    short_gb: float
    """Memory that is missing; negative: memory to spare."""
    knob: str = ""
    """The cheapest remedy."""


class HardwareFit(DeferredConfig):
    """The hardware given, and the memory plans that fit it."""

    given: str
    capacity_gb: float | None
    chosen: Fit | None
    rejected: list[Fit] = Field(default_factory=list)
    asked: Fit | None = None
    """The plan requested, where one was."""


class Range(DeferredConfig):
    """A range from low to high."""

    low: float
    high: float


class Estimate(DeferredConfig):
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


class AdviceWarning(DeferredConfig):
    """A warning of a rule."""

    id: str
    level: Level
    text: str
    rule: str
    quotes: list[Quote] = Field(default_factory=list)


class EvalPlan(DeferredConfig):
    """The evaluation that a model must pass before it ships."""

    target: list[str]
    guard: list[str]
    rule: str
    """The decision rule, in words."""
    min_rows: int
    """Held-out rows at which the effect wanted can be seen."""
    detectable: float | None = None
    """The smallest effect, as a share, that the rows on hand can show; null where rows are unknown."""


class Requested(DeferredConfig):
    """The method requested against the method advised."""

    requested: str
    recommended: str
    agrees: bool
    blocking: bool
    because: str


class Disagreement(DeferredConfig):
    """Two sources that contradict each other on one fact."""

    fact: str
    taken: str
    dropped: str


class UnderstoodFact(DeferredConfig):
    """One fact as it was understood, before anything is concluded from it."""

    topic: Literal["goal", "behaviour", "knowledge", "data", "scorer", "model", "hardware", "constraints", "evals"]
    setting: str
    """The fact as ``--set`` takes it: ``behaviour.rules_count=27``, ``data.0.kind=preference_pairs``."""
    text: str
    """The fact in words: ``27 rules at once``."""
    quotes: list[Quote]
    """The words it rests on."""
    guess: bool = False
    """The words alone make the fact improbable; it was taken because the text as a whole calls for it."""


class OtherReading(DeferredConfig):
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


class PrecedentScore(DeferredConfig):
    """One domain or eval of a gate, before and after a run; the gate's own numbers."""

    name: str
    role: Literal["domain", "eval", "safety", "watch"]
    """domain: gates. eval: is part of such a domain. safety: gates by itself. watch: is only watched."""
    verdict: str
    """The gate's: improved, pass, pass (lower), inconclusive, regressed, no clear change."""
    before: float | None
    after: float | None
    """Scores of both models; null for a domain."""
    difference: float
    """After minus before, turned so that above 0 is better."""
    low: float
    high: float
    """Ends of the gate's interval of the difference."""
    items: int


class Precedent(DeferredConfig):
    """A training stage that was run and measured here before, and what of the advice rests on it."""

    run: str
    """Directory of the run and name of the stage: ``runs/letters/sft``."""
    stage: str
    """The method, as a plan names its stages: sft, dpo, continual_pretraining."""
    model: str
    params_b: float | None
    tuning: Literal["full", "lora", "qlora"]
    data: str
    """The kind of data that it learned from."""
    rows: int | None
    outcome: str
    """The gate's: pass, regressed, inconclusive, refused, invalid; empty where no gate has decided."""
    verdict: Literal["improved", "unchanged", "regressed", "undecided"]
    """The outcome of such a run by its measurement. unchanged: nothing improved beyond its interval."""
    scores: list[PrecedentScore]
    hours: float | None
    """Wall-clock hours of the stage; null where they are not recorded."""
    gpu_hours: float | None
    hardware: str
    own: bool
    """True for the run that ``--history`` names, which is this project's own."""
    alike: list[str]
    """Why it is like this project, in words."""
    text: str
    """The run in a sentence with its figures."""
    changed: list[str]
    """Its effect on the advice, in words; empty where it changed nothing."""
    next: str = ""
    """The step after the gate's verdict; only for the project's own run."""


class Provenance(DeferredConfig):
    """Hashes of everything the advice depends on: equal hashes give equal bytes."""

    tool: str
    rules: str
    thresholds: str
    parser: str
    input: str
    reader: str = ""
    """Hash of the learned reader's weights; empty where it read no words."""


class Advice(DeferredConfig):
    """Advice on a project: whether to train, what, with which data and hardware, and what is missing."""

    schema_: Literal["align.advice/1"] = Field("align.advice/1", alias="schema", serialization_alias="schema")
    primary: Primary
    confidence: Confidence
    probability: float | None = None
    """Calibrated probability that the answer is right, as read from free words; null where none were read."""
    understood: list[UnderstoodFact] = Field(default_factory=list)
    """The facts as read, by topic; shown before the answer, so that a misreading is seen at once."""
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
    precedents: list[Precedent] = Field(default_factory=list)
    """Like runs that were measured here before (``--history``), the project's own first, then the nearest."""
    conflicts: list[Disagreement]
    not_understood: list[str]
    """Input that was left unread or rejected: an unsupported language, an unproved quote."""
    provenance: Provenance

    @property
    def blocking(self) -> list[str]:
        """The ids of rules and error-level warnings that should stop a launch."""
        rules = ["requested-differs"] if self.requested is not None and self.requested.blocking else []
        return rules + [warning.id for warning in self.warnings if warning.level == "error"]
