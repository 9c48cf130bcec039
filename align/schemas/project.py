"""The project form: the purpose of a model, as ``align advise`` reads it and a run file may contain it.

Every field may be left out. Null means unknown, and is never taken for 0, no or none. ``--what-if``, ``--ask`` and
third-party rules use the same field names.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from align.schemas.base import DeferredConfig

DataKind = Literal[
    "corpus",
    "documents",
    "sft_pairs",
    "preference_pairs",
    "unpaired_feedback",
    "prompts",
    "logs",
    "eval_set",
]
"""corpus: text to go on with pre-training. documents: pages to be looked up. sft_pairs: inputs with the answer wanted.
preference_pairs: two answers and which is better. unpaired_feedback: single answers marked good or bad. prompts: inputs
without answers. logs: conversations in production, unjudged. eval_set: rows held out for measuring."""
DATA_KINDS: tuple[DataKind, ...] = get_args(DataKind)

Tried = Literal["prompting", "few_shot", "rag", "fine_tuning"]

Method = Literal[
    "prompting",
    "rag",
    "continual_pretraining",
    "post_training",
    "sft",
    "dpo",
    "kto",
    "reward_model",
    "rlhf",
    "grpo",
    "rloo",
    "ppo",
    "best_of_n",
]
"""Methods that can be requested: a class of methods, or one by name. ``post_training`` is "fine-tuning" without a more
specific word; ``rlhf`` is learning from rewards without one."""


class Size(DeferredConfig):
    """The amount of data. A file named in ``path`` is counted, and the count beats numbers claimed here."""

    rows: NonNegativeInt | None = None
    """Examples, pairs, prompts."""
    tokens: NonNegativeInt | None = None
    docs: NonNegativeInt | None = None
    """Documents or pages."""
    bytes: NonNegativeInt | None = None


class DataSet(DeferredConfig):
    """One data set on hand."""

    kind: DataKind
    size: Size = Size()
    path: str | None = None
    """A data file, a directory of them, or a hub id."""
    source: Literal["human", "production", "synthetic", "public"] | None = None
    """The origin of the rows."""
    quality: str | None = None
    """The quality in a word: raw, curated."""
    license: str | None = None
    pii: bool | None = None
    """True if it contains personal data."""
    labelled_by: str | None = None
    """The annotators: experts, users, or the name of a model."""
    overlaps_evals: bool | None = None
    """True if rows of it, or of its source, are in the evaluation data."""
    note: str | None = None


class Task(DeferredConfig):
    """The task of the model."""

    type: str | None = None
    """chat, qa, extraction, classification, summarisation, translation, generation, sql, code, function_calling,
    reasoning, domain_model, or other."""
    description: str | None = None
    languages: list[str] = Field(default_factory=list)
    """ISO 639 codes."""


class Behaviour(DeferredConfig):
    """The behaviour wanted, where it differs from today's."""

    rules_count: NonNegativeInt | None = None
    """Rules, fields and constraints that one answer must satisfy at the same time."""
    output_format: Literal["none", "fixed", "strict_schema"] | None = None
    """fixed: one form or template. strict_schema: a form that a program parses or checks. none: free text."""
    style_or_persona: bool | None = None
    """True if a tone, a style or an identity is to be learned, or a base model is to converse at all."""
    target_capability: str | None = None
    """One skill to be improved: sql, function_calling, reasoning, math, code, extraction, classification,
    instruction_following, and the like."""
    prompt_falls_short: bool | None = None
    """True if a good prompt was tried and seen to fall short; false if prompts do well enough."""


class Knowledge(DeferredConfig):
    """The knowledge that the model needs and does not have."""

    source: Literal["none", "public", "proprietary"] | None = None
    """proprietary: answers rest on the organisation's own material. none: the model knows all that it needs."""
    changes: Literal["never", "yearly", "monthly", "weekly", "daily", "realtime"] | None = None
    """The rate at which the facts that answers need change."""
    needs_citations: bool | None = None
    """True if answers must name the passage or document that they rest on."""
    unseen_domain: bool | None = None
    """True if a domain or a language was hardly in the model's pre-training, so that the model does not know it."""
    per_user: bool | None = None
    """True if access to knowledge depends on the user who asks."""
    pretraining_done: bool | None = None
    """True if the model has been pre-trained on the domain's corpus already."""


class RewardSource(DeferredConfig):
    """The scorer of answers."""

    kind: Literal["none", "verifier", "reward_model", "llm_judge", "human"] | None = None
    """verifier: a program tells right from wrong (tests, a checker, a known answer). reward_model: a learned scorer.
    llm_judge: a model grades. human: people grade each answer. none: nothing can score an answer."""
    path: str | None = None
    """A reward plugin, or a function as FILE:NAME."""
    note: str | None = None


class ModelFacts(DeferredConfig):
    """The model to start from."""

    name: str | None = None
    """A local directory, a hub id, or any name. With a config.json its shape is read, not guessed."""
    params_b: PositiveFloat | None = None
    """Parameters, in billions."""
    type: Literal["base", "instruct"] | None = None
    """base: continues text. instruct: has been fine-tuned to answer."""
    license: str | None = None
    note: str | None = None


class HardwareFacts(DeferredConfig):
    """The hardware on hand."""

    gpus: NonNegativeInt | None = None
    gpu: str | None = None
    """Its name, as align's list of GPUs has it: H100, A100-80, RTX 4090."""
    memory_gb: PositiveFloat | None = None
    """Memory of one GPU, in 10^9 bytes."""
    cpu_ram_gb: PositiveFloat | None = None
    interconnect: str | None = None


class Constraints(DeferredConfig):
    """Constraints on every solution."""

    budget_usd: NonNegativeFloat | None = None
    deadline_days: NonNegativeFloat | None = None
    latency_s: NonNegativeFloat | None = None
    """Longest an answer may take."""
    requests_per_day: NonNegativeFloat | None = None
    on_prem: bool | None = None
    """True if data must not leave the organisation."""
    regulated: bool | None = None
    """True if personal, patient, client or licensed material is used, or a regulator supervises."""
    weights_frozen: bool | None = None
    """True if the model's weights must stay as they are."""
    max_n: NonNegativeInt | None = None
    """Most answers that may be sampled for one request."""


class EvalFacts(DeferredConfig):
    """The measure of success."""

    metric: str | None = None
    baseline: float | None = None
    """The metric today, with the best prompt; in the metric's own unit, shares as 0 to 1."""
    target: float | None = None
    suite: list[str] = Field(default_factory=list)
    """Benchmarks by name."""
    held_out_rows: NonNegativeInt | None = None
    judge: Literal["program", "human", "model"] | None = None
    """The judge of answers in evaluation."""


class TrainingRequest(DeferredConfig):
    """Training settings that the user requests."""

    tuning: Literal["full", "lora", "qlora"] | None = None
    max_length: NonNegativeInt | None = None
    """Longest sequence, in tokens."""


class Measurement(DeferredConfig):
    """A number that was measured, with its 95 % interval."""

    value: float
    low: float
    high: float
    rows: NonNegativeInt
    """Number of rows measured."""

    def __str__(self) -> str:
        """``0.62 (0.55 to 0.69, 200 rows)``."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}, {self.rows:,} rows)"


class Measured(DeferredConfig):
    """Measurements of the untouched model by probes (``align advise --measure``). Shares are 0 to 1."""

    score: str | None = None
    """The scorer of the answers: rewards by name, or ``word F1`` with the reference answer, where none was named."""
    zero_shot: Measurement | None = None
    """Score on the rows as they are."""
    few_shot: Measurement | None = None
    """Score with worked examples in the prompt."""
    closed_book: Measurement | None = None
    """Score on questions without the documents."""
    open_book: Measurement | None = None
    """Score on the same questions with the passages that BM25 finds."""
    corpus_bits: Measurement | None = None
    """Bits per byte of the corpus."""
    reference_bits: Measurement | None = None
    """Bits per byte of ordinary text."""
    pass_1: Measurement | None = None
    """Probability that one sampled answer is right."""
    pass_k: Measurement | None = None
    """Probability that one of k sampled answers is right (2107.03374 Eq 1)."""
    flat_groups: Measurement | None = None
    """Share of prompts whose sampled answers all score alike: nothing to learn from there."""
    prefers_chosen: Measurement | None = None
    """Share of pairs whose better answer is more probable under the model."""


class Project(DeferredConfig):
    """The form of a project: what is wanted, what there is, and what has been measured; every field may be empty."""

    description: str | None = None
    """The project in free words; facts are read from it too, and the form's own fields beat them."""
    task: Task = Task()
    behaviour: Behaviour = Behaviour()
    knowledge: Knowledge = Knowledge()
    data: list[DataSet] | None = None
    """The data on hand. An empty list means there are none; null means unknown."""
    reward: RewardSource = RewardSource()
    model: ModelFacts = ModelFacts()
    hardware: HardwareFacts = HardwareFacts()
    constraints: Constraints = Constraints()
    evals: EvalFacts = EvalFacts()
    training: TrainingRequest = TrainingRequest()
    measured: Measured = Measured()
    tried: list[Tried] | None = None
    """Methods tried already, with or without success."""
    requested: Method | None = None
    """The method requested."""
