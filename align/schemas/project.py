"""What somebody wants a language model for: the form that ``align advise`` reads and a run file may carry.

Every field may be left out. Null says unknown, and is never taken for 0, no or none. Field names are what
``--what-if``, ``--ask`` and third-party rules call them.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from align.schemas.base import Config

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
without answers. logs: what was said in production, unjudged. eval_set: rows held out for measuring."""
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
"""What can be asked for: a class of methods, or one by name. ``post_training`` is "fine-tuning" without a closer word;
``rlhf`` is learning from rewards without one."""


class Size(Config):
    """How much of it there is. A file named in ``path`` is counted and beats what is claimed here."""

    rows: NonNegativeInt | None = None
    """Examples, pairs, prompts."""
    tokens: NonNegativeInt | None = None
    docs: NonNegativeInt | None = None
    """Documents or pages."""
    bytes: NonNegativeInt | None = None


class DataSet(Config):
    """One body of data that is on hand."""

    kind: DataKind
    size: Size = Size()
    path: str | None = None
    """A data file, a directory of them, or a hub id."""
    source: Literal["human", "production", "synthetic", "public"] | None = None
    """Who wrote it."""
    quality: str | None = None
    """In a word: raw, curated."""
    license: str | None = None
    pii: bool | None = None
    """Whether it holds personal data."""
    labelled_by: str | None = None
    """Who judged: experts, users, or the name of a model."""
    overlaps_evals: bool | None = None
    """Whether rows of it, or of its source, are in what will be measured."""
    note: str | None = None


class Task(Config):
    """What is wanted."""

    type: str | None = None
    """chat, qa, extraction, classification, summarisation, translation, generation, sql, code, function_calling,
    reasoning, domain_model, or other."""
    description: str | None = None
    languages: list[str] = Field(default_factory=list)
    """ISO 639 codes."""


class Behaviour(Config):
    """How the model should act, other than today."""

    rules_count: NonNegativeInt | None = None
    """Rules, fields and constraints that one answer must keep at the same time."""
    output_format: Literal["none", "fixed", "strict_schema"] | None = None
    style_or_persona: bool | None = None
    """Whether a tone, a style or an identity is to be learned, or a base model is to converse at all."""
    target_capability: str | None = None
    """One skill to be raised: sql, function_calling, reasoning, math, code, extraction, classification,
    instruction_following, and the like."""
    prompt_falls_short: bool | None = None
    """Whether a good prompt was tried and seen to miss what is wanted."""


class Knowledge(Config):
    """What the model must know that it does not."""

    source: Literal["none", "public", "proprietary"] | None = None
    changes: Literal["never", "yearly", "monthly", "weekly", "daily", "realtime"] | None = None
    """How often the facts that answers need change."""
    needs_citations: bool | None = None
    unseen_domain: bool | None = None
    """Whether a domain or a language was hardly in the model's pre-training."""
    per_user: bool | None = None
    """Whether what may be known depends on who asks."""
    pretraining_done: bool | None = None
    """Whether the model has gone through the domain's corpus already."""


class RewardSource(Config):
    """What can score an answer."""

    kind: Literal["none", "verifier", "reward_model", "llm_judge", "human"] | None = None
    path: str | None = None
    """A reward plugin, or a function as FILE:NAME."""
    note: str | None = None


class ModelFacts(Config):
    """The model to start from."""

    name: str | None = None
    """A local directory or hub id, or what it is called. With a config.json its shape is read, not guessed."""
    params_b: PositiveFloat | None = None
    """Parameters, in billions."""
    type: Literal["base", "instruct"] | None = None
    """base: continues text. instruct: has been fine-tuned to answer."""
    license: str | None = None
    note: str | None = None


class HardwareFacts(Config):
    """What there is to compute on."""

    gpus: NonNegativeInt | None = None
    gpu: str | None = None
    """Its name, as align's list of GPUs has it: H100, A100-80, RTX 4090."""
    memory_gb: PositiveFloat | None = None
    """Memory of one GPU, in 10^9 bytes."""
    cpu_ram_gb: PositiveFloat | None = None
    interconnect: str | None = None


class Constraints(Config):
    """What must hold whatever is done."""

    budget_usd: NonNegativeFloat | None = None
    deadline_days: NonNegativeFloat | None = None
    latency_s: NonNegativeFloat | None = None
    """Longest an answer may take."""
    requests_per_day: NonNegativeFloat | None = None
    on_prem: bool | None = None
    """Whether data must not leave the house."""
    regulated: bool | None = None
    """Whether personal, patient, client or licensed material is touched, or a regulator looks on."""
    weights_frozen: bool | None = None
    """Whether the model's weights must stay as they are."""
    max_n: NonNegativeInt | None = None
    """Most answers that may be sampled for one request."""


class EvalFacts(Config):
    """What success is, and how it is seen."""

    metric: str | None = None
    baseline: float | None = None
    """The metric today, with the best prompt; in the metric's own unit, shares as 0 to 1."""
    target: float | None = None
    suite: list[str] = Field(default_factory=list)
    """Benchmarks by name."""
    held_out_rows: NonNegativeInt | None = None
    judge: Literal["program", "human", "model"] | None = None
    """Who scores."""


class TrainingRequest(Config):
    """How the user means to train, where that was said."""

    tuning: Literal["full", "lora", "qlora"] | None = None
    max_length: NonNegativeInt | None = None
    """Longest sequence, in tokens."""


class Measurement(Config):
    """A number that was measured, with its 95 % interval."""

    value: float
    low: float
    high: float
    rows: NonNegativeInt
    """How many it rests on."""

    def __str__(self) -> str:
        """``0.62 (0.55 to 0.69, 200 rows)``."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}, {self.rows:,} rows)"


class Measured(Config):
    """What probes found of the untouched model (``align advise --measure``). Shares are 0 to 1."""

    score: str | None = None
    """What scored the answers: rewards by name, or ``word F1`` with the answer wanted, where none was named."""
    zero_shot: Measurement | None = None
    """Score on the rows, asked as they are."""
    few_shot: Measurement | None = None
    """The same with worked examples in the prompt."""
    closed_book: Measurement | None = None
    """Score on questions without the documents."""
    open_book: Measurement | None = None
    """The same questions with the passages that BM25 finds."""
    corpus_bits: Measurement | None = None
    """Bits per byte of the corpus."""
    reference_bits: Measurement | None = None
    """Bits per byte of ordinary text."""
    pass_1: Measurement | None = None
    """Chance that one sampled answer is right."""
    pass_k: Measurement | None = None
    """Chance that one of k is (2107.03374 Eq 1)."""
    flat_groups: Measurement | None = None
    """Share of prompts whose sampled answers all score alike: nothing to learn from there."""
    prefers_chosen: Measurement | None = None
    """Share of pairs whose better answer the model finds likelier."""


class Project(Config):
    """The form of a project: what is wanted, what there is, and what has been measured; every field may be empty."""

    description: str | None = None
    """In free words; facts are read from it too, and what the form says beats them."""
    task: Task = Task()
    behaviour: Behaviour = Behaviour()
    knowledge: Knowledge = Knowledge()
    data: list[DataSet] | None = None
    """What is on hand. An empty list says there is none; null says nothing."""
    reward: RewardSource = RewardSource()
    model: ModelFacts = ModelFacts()
    hardware: HardwareFacts = HardwareFacts()
    constraints: Constraints = Constraints()
    evals: EvalFacts = EvalFacts()
    training: TrainingRequest = TrainingRequest()
    measured: Measured = Measured()
    tried: list[Tried] | None = None
    """What has been tried already, with or without success."""
    requested: Method | None = None
    """The method that is asked for."""
