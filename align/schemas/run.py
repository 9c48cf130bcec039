"""The run file: a training run as the user configures it. Pure data; plugins are named, never imported.

A run is one or more stages. Top-level keys are the defaults of every stage; a stage's own keys are laid over
them. A run without ``stages`` is one stage, named after its algorithm.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from align.schemas.base import DeferredConfig
from align.schemas.project import Project

# A plugin chosen in a run file: its name, and its settings next to it.


class Choice(DeferredConfig):
    """A plugin by name with its settings: ``dpo``, or ``{type: dpo, beta: 0.1}``."""

    type: str
    """The plugin's name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The keys next to ``type``; the plugin's own Config checks them."""


def expand_shorthand(value: Any, own_keys: frozenset[str] = frozenset({"type"})) -> Any:
    """Return ``dpo`` and ``{type: dpo, beta: 0.1}`` as ``{type: dpo, settings: {beta: 0.1}}``.

    own_keys: keys that are no settings of the plugin.
    """
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, dict) and "type" in value and "settings" not in value:
        own = {k: v for k, v in value.items() if k in own_keys}
        return {**own, "settings": {k: v for k, v in value.items() if k not in own_keys}}
    return value


Plugin = Annotated[Choice, BeforeValidator(expand_shorthand)]


# The run file's ``rollout``: sampling, rewards and alarms of an online stage.


class Sampling(DeferredConfig):
    """Sampling of tokens: penalty, then temperature, then top-k, top-p and min-p in this order."""

    max_completion_length: PositiveInt = 256
    """Longest answer, in tokens (TRL's name)."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits; 0 takes the most probable token (the lowest id among equals)."""
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
        """True where answers are sampled from the model's own distribution at this temperature, without truncation."""
        whole = self.top_k == 0 and self.top_p == 1 and self.min_p == 0
        return whole and self.repetition_penalty == 1 and self.temperature > 0


class RewardChoice(Choice):
    """A reward plugin with its weight in the sum: ``math``, or ``{type: length, weight: 0.1, target: 200}``."""

    weight: float = 1.0
    """Factor of its score in the weighted mean. A reward that abstains is left out, and the other weights rescaled."""
    normalize: bool = False
    """Subtract the running mean of its scores and divide by their standard deviation."""
    timeout: PositiveFloat | None = None
    """Seconds for one answer. Given, or set by the plugin, the reward runs in killable worker processes."""
    overlap: bool | None = None
    """Score finished groups while others are still generated (docs/rewards.md). Default: the reward decides, and does
    so where it waits for a server or, next to a GPU, for other processes."""


REWARD_KEYS = frozenset(RewardChoice.model_fields) - {"settings"}
"""The keys of a reward that are not its plugin's settings."""

RewardPlugin = Annotated[RewardChoice, BeforeValidator(lambda value: expand_shorthand(value, REWARD_KEYS))]
"""A setting that chooses a reward: its name, or a mapping with ``type``, weight and the reward's own settings."""


class ImportanceSamplingCorrection(DeferredConfig):
    """Correction for a generator whose probabilities are not quite the trainer's: weights pi_trainer / pi_generator."""

    type: Literal["none", "truncate", "mask"] = "none"
    """``truncate``: weights are at most ``clip_max`` (truncated importance sampling). ``mask``: weights outside
    [1 / clip_max, clip_max] become 0. (TRL's mode ``token_truncate`` is ``truncate`` at level ``token``; its ``mask``
    cuts below only where clip_min is set.)"""
    level: Literal["token", "sequence"] = "token"
    """A weight for each token, or one for each answer."""
    length_normalized: bool = True
    """sequence only: the geometric mean over tokens, so that long answers do not lose their weight to rounding."""
    clip_max: Annotated[float, Field(gt=1)] = 2.0
    """Largest weight (TRL's vllm_importance_sampling_clip_max)."""


class Watch(DeferredConfig):
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


class Rollout(DeferredConfig):
    """Generation of an online stage's examples, phase by phase."""

    generator: Plugin = Choice(type="local")
    """A generator plugin: ``local`` (the policy itself), ``vllm``."""
    sampling: Sampling = Sampling()
    """Sampling of tokens."""
    rewards: Annotated[list[RewardPlugin], Field(min_length=1)]
    """Reward plugins with their weights."""
    gold: RewardPlugin | None = None
    """A reward that is measured and never learned from, to see whether the others are being gamed."""
    batches: PositiveInt = 1
    """Optimizer steps' worth of answers (``train.batch_size`` each) in one phase, all from the same weights: TRL's
    steps_per_generation / gradient_accumulation_steps, as TRL counts micro-batches."""
    zero_std_groups: Literal["keep", "drop", "refill"] = "keep"
    """Groups whose answers all got the same reward: stay (in the averages, with advantage 0), leave the averages, or
    are replaced by further prompts (dynamic sampling, DAPO 2503.14476)."""
    refill_tokens: PositiveInt | None = None
    """refill only: stop replacing after this many sampled tokens in a phase; default: three times the first round's."""
    importance_sampling_correction: ImportanceSamplingCorrection = ImportanceSamplingCorrection()
    """Correction for generators with probabilities of their own."""
    max_staleness: Literal[0, 1] = 0
    """Phases that the weights which sample may be behind (TRL's AsyncGRPO counts weight updates so). 1: the next phase
    is sampled while this one is learned from; needs a generator that runs next to the trainer (vllm, ``mode: server``)
    and ``importance_sampling_correction``."""
    sync_tolerance: PositiveFloat | None = None
    """Largest difference of log-probabilities between generator and trainer after weights were sent; default 1e-3 in
    float32, 0.25 in 16 bits."""
    watch: Watch = Watch()
    """Alarms."""
    samples: Literal["parquet", "none"] = "parquet"
    """File format of each phase's answers: ``STAGE/samples/phase-000001.parquet``."""
    num_completions_to_print: NonNegativeInt = 0
    """Answers to print after each phase."""


Fraction = Annotated[float, Field(ge=0, le=1)]
"""A setting between 0 and 1, both included."""


class Adapter(DeferredConfig):
    """A low-rank adapter trained in place of the full weights (LoRA 2106.09685, DoRA 2402.09353), in PEFT's words."""

    type: Literal["lora", "dora"] = "lora"
    """``lora``, or ``dora`` for weight-decomposed LoRA."""
    r: PositiveInt = 16
    """Rank of the update (TRL 1.16's default)."""
    lora_alpha: PositiveFloat = 32
    """Scale: the update is multiplied by lora_alpha / r (TRL 1.16's default)."""
    lora_dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Module names to adapt; ``all-linear`` is every linear layer but the head (QLoRA 2305.14314 section 4)."""
    target_parameters: list[str] = Field(default_factory=list)
    """Parameters to adapt that lie in no linear layer, by the end of their names: the fused experts of a mixture
    (``experts.gate_up_proj``). For lora without dropout."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules to train fully in addition to the adapter (``embed_tokens``, ``lm_head``); tied ones stay tied."""
    trainable_token_indices: list[int | str] = Field(default_factory=list)
    """Tokens whose rows of the embeddings (and of an untied head) are trained: ids, or the tokens' text.
    For tokens that were added to the vocabulary."""
    quantize: Literal["nf4", "int8"] | None = None
    """Load the frozen base in 4 or 8 bits (QLoRA); needs ``pip install 'align-llm[quant]'`` and a GPU."""


class Model(DeferredConfig):
    """The weights to start from, their type, and the adapter."""

    path: str
    """A local directory, a hub id, or ``stage:NAME`` for what an earlier stage exported. One that holds an adapter is
    trained on; with ``adapter`` it is merged into its base first and a new one is trained."""
    revision: str | None = None
    """A hub revision (branch, tag or commit)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type the weights are held in; float32 under ``train.precision: bf16-mixed`` is the safe choice. float64 is slow
    and for comparisons: a difference between two runs is then not due to rounding."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Attention implementation; ``auto`` leaves it to transformers."""
    adapter: Adapter | None = None
    """Train a low-rank adapter instead of the full weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights. Off unless you have read that code."""
    chat_template: str | None = None
    """A file holding a Jinja chat template that replaces the tokenizer's own."""


class Source(DeferredConfig):
    """One file, directory or hub dataset, with its weight in a mixture."""

    path: str
    """A file (.jsonl .json .csv .txt .parquet, .gz or .zst), a directory of such files, a hub dataset id, or
    ``stage:NAME`` for the rows that an earlier stage made (best_of_n)."""
    name: str | None = None
    """Held-out sources only: measured apart as ``val/NAME/...`` (continual pre-training: ``domain``, ``general``)."""
    split: str = "train"
    """Split of a hub dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    format: str = "auto"
    """A format plugin's name; ``auto`` recognises it by the keys."""
    weight: PositiveFloat = 1.0
    """Share in the mixture: each epoch draws from the sources by weight. All equal: every row once."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Rename the file's columns: ``{prompt: question}`` reads ``question`` as ``prompt``."""
    documents: Literal["file", "blank_lines", "lines"] = "file"
    """The unit that becomes one row of a .txt file: the whole file, a block between blank lines, or a line."""


def _sources(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    return [{"path": v} if isinstance(v, str) else v for v in values]


Sources = Annotated[list[Source], BeforeValidator(_sources)]


class Data(DeferredConfig):
    """Training and validation data."""

    train: Sources
    """Training rows: a path, or a list of sources with weights."""
    validation: Sources | None = None
    """Held-out rows. Without it, ``validation_fraction`` of the training rows is held out."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows held out, chosen by a hash of each row's content: stable when rows are added."""
    max_length: PositiveInt = 1024
    """Longest sequence in tokens (TRL 1.16's default)."""
    truncation_mode: Literal["error", "drop", "keep_start", "keep_end", "split"] = "error"
    """Treatment of longer ones: name the rows and stop, drop, cut, or (text only) split into blocks."""
    on_bad_rows: Literal["error", "skip"] = "error"
    """Rows that cannot be read: stop before training, or skip them and keep the report in the run directory."""
    allow: list[str] = Field(default_factory=list)
    """Findings of the template doctor to accept, by id (``boundary-merge``); each is recorded in the manifest."""
    special_tokens: list[str] = Field(default_factory=list)
    """Special tokens (``<think>``) whose spelling in a row becomes the token, in messages too. All others stay text."""
    stream: bool = False
    """Read and tokenise in windows instead of all at once (pretrain); needs ``train.max_steps``."""
    stream_window: PositiveInt = 10_000
    """Rows in a window; each window is one epoch of the step plan."""
    dataset_num_proc: PositiveInt | None = None
    """Processes that read and tokenise; default: one per core."""


class Optimizer(DeferredConfig):
    """AdamW (1711.05101)."""

    learning_rate: PositiveFloat | None = None
    """Peak rate. Default: the algorithm's vetted rate, ten times that with an adapter."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay, on matrices only (not on norms, biases)."""
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: PositiveFloat = 1e-8


class Schedule(DeferredConfig):
    """Learning rate over steps: linear warm-up, then a decay."""

    type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up (``linear`` is TRL's and transformers' default)."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    """Below 1: share of all steps; from 1: number of steps."""
    min_lr_rate: Fraction = 0.0
    """The decay ends at this share of the peak rate."""


class Train(DeferredConfig):
    """Length of training, batch size and precision."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the data; may be a fraction."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever ``num_train_epochs`` says."""
    batch_size: PositiveInt = 16
    """Examples (online: sampled answers) per optimizer step, over all devices: what is learned depends on it and on no
    other size here. TRL's per_device_train_batch_size x gradient_accumulation_steps x devices."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens (padding included) in a forward pass; default: by device. Changes speed and memory only."""
    micro_batch_size: PositiveInt | None = None
    """Most examples in one forward pass; default: as many as the tokens allow. Changes speed and memory only."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """Layout of sequences in a forward pass. Changes speed and memory only."""
    shared_prefix: bool = True
    """Compute the tokens with which several sequences of a micro-batch begin, such as their prompt, once, where the
    model can and it pays. Changes speed and memory only."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this global norm (null: never)."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    """Lightning's precision setting."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite: stop with the rows named, or leave it out and count it."""
    max_skipped: PositiveInt = 3
    """Most consecutive steps that ``skip`` leaves out before the run stops."""
    dropout: bool | None = None
    """Turn the model's own dropout on. Default: off for preference and reward learning, else on."""


class Validation(DeferredConfig):
    """Held-out evaluation while training."""

    eval_steps: PositiveInt | None = None
    """Steps between evaluations; default: once each epoch (online: each pass over the prompts). One is always made
    before the first step."""
    metric_for_best_model: str | None = None
    """The held-out metric that picks the best checkpoint; default ``loss``, of an online stage ``reward``. Also
    ``reward`` with ``generate``, and ``NAME/score`` of a suite."""
    mode: Literal["min", "max"] | None = None
    """Direction in which the metric is better; default ``max`` for rewards and scores, else the algorithm's."""
    early_stopping_patience: PositiveInt | None = None
    """Stop early after this many evaluations without improvement (null: never)."""
    generate: bool = False
    """Sample completions of the held-out rows' prompts at each evaluation, score them and log them, in stages that
    learn from rows too (``val/reward``, ``val/completions/...``; online stages always do)."""
    rewards: list[RewardPlugin] = Field(default_factory=list)
    """generate only: reward plugins that score the completions. A row's own completion is its column ``completion``."""
    sampling: Sampling = Sampling(temperature=0.0)
    """generate only: sampling of the completions; greedy by default."""
    max_prompts: PositiveInt | None = 256
    """generate only: prompts of each held-out set that are completed (null: all), the same ones at every evaluation."""
    suite: str | None = None
    """A suite file (docs/evals.md): its evals are measured at each evaluation, as ``val/NAME/score``."""


class Checkpoint(DeferredConfig):
    """Checkpoints for resuming, and the export."""

    save_steps: PositiveInt = 100
    """Steps between checkpoints; one is always made at the end."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Newest ones kept (the best one in addition)."""
    export: Literal["last", "best"] = "last"
    """The weights that the stage exports: the last, or the best by ``validation.metric_for_best_model``."""


class Reference(DeferredConfig):
    """The policy that a loss measures its distance to."""

    type: Literal["auto", "copy", "adapter-off", "adapter-snapshot", "precomputed", "moving-average"] = "auto"
    """``auto``: the adapter switched off where a new one is trained, a snapshot of an adapter that is trained on,
    else log-probabilities computed once before training and kept (a copy, where the algorithm makes new examples
    while it trains: kto)."""
    ref_model_mixup_alpha: Fraction = 0.6
    """moving-average only: share of the policy mixed in, alpha of TR-DPO (2404.09656)."""
    ref_model_sync_steps: PositiveInt = 512
    """moving-average only: steps between updates, tau of TR-DPO (2404.09656)."""


class Devices(DeferredConfig):
    """Devices, processes and strategy."""

    strategy: Plugin = Choice(type="auto")
    """A strategy plugin: ``auto``, ``single``, ``ddp``, ``fsdp``."""
    count: PositiveInt | Literal["auto"] = "auto"
    """Devices (processes) per node."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: Annotated[float, Field(gt=0, le=30 * 86400)] = 1800.0
    """Seconds to wait for anything that may never end: another process that gives no sign of life, a reward without a
    time limit of its own. Then the run stops, names what it waited for, and can be resumed."""
    heartbeat: Annotated[float, Field(gt=0, le=30 * 86400)] = 120.0
    """Seconds without a sign of life after which another process is lost, while steps are taken: it was stopped, or its
    machine is gone. Then the run stops, and every process names the lost one. At most ``timeout``."""
    stop_timeout: Annotated[float, Field(gt=0, le=30 * 86400)] = 90.0
    """Seconds after SIGTERM, SIGINT or SIGUSR1 to end and save the step. After that the run ends without it; resuming
    starts from the last checkpoint."""


class Gate(DeferredConfig):
    """Measurement of the stage's export against a baseline, and what follows from the verdict (docs/evals.md)."""

    suite: str
    """A suite file, or the name of a suite that comes with align."""
    policy: str
    """A policy file: margins by domain."""
    baseline: str | None = None
    """A model, or the directory of an eval run; default: the model that the stage starts from."""
    on_regression: Literal["stop", "keep", "rollback"] = "stop"
    """``stop`` ends the run, ``keep`` goes on with the export, ``rollback`` makes the model that the stage starts from
    its export (what was trained stays in ``export-rejected``)."""
    on_inconclusive: Literal["stop", "keep", "rollback"] = "keep"
    """The same where the data cannot tell."""


class Stage(DeferredConfig):
    """One training stage: a model, data, an algorithm, and settings."""

    name: str
    """Names its directory, and what later stages call it."""
    model: Model
    data: Data
    algorithm: Plugin
    reference: Reference = Reference()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    rollout: Rollout | None = None
    """Sampling and scoring of an online algorithm (rloo, reinforce, grpo, ppo, online_dpo, best_of_n)."""
    train: Train = Train()
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    gate: Gate | None = None
    """Gate that the export must pass before a later stage takes it."""
    devices: Devices = Devices()
    loggers: list[Plugin] = Field(default_factory=lambda: [Choice(type="csv")])
    """Logger plugins: ``csv``, ``tensorboard``, ``wandb``."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers of the stage."""

    @model_validator(mode="after")
    def _computes_in_what_it_holds(self) -> Self:
        if self.model.dtype == "float64" and self.train.precision != "32-true":
            raise ValueError("model.dtype is float64, which train.precision 32-true alone computes in")
        return self


class Override(DeferredConfig):
    """A finding of the advice that would stop this launch, and the reason to launch all the same."""

    rule: str
    """The finding's id, as the error message names it (``R-CPT-3``)."""
    reason: str
    """Kept in the manifest and shown in the report."""

    @model_validator(mode="after")
    def _has_a_reason(self) -> Self:
        if not self.reason.strip():
            raise ValueError("reason is empty; say why it goes on all the same")
        return self


class Run(DeferredConfig):
    """A whole run: its stages in order, and where they write."""

    output: str
    """The run directory. One directory, one run: a second start resumes or is refused."""
    project: Project | None = None
    """The purpose of the run, as ``align advise`` reads it: a launch is checked against its advice."""
    overrides: list[Override] = Field(default_factory=list)
    """Findings that would stop it, and reasons to launch: ``align train --override RULE --reason TEXT``."""
    stages: Annotated[list[Stage], Field(min_length=1)]

    @model_validator(mode="after")
    def _something_to_override(self) -> Self:
        if self.overrides and self.project is None:
            raise ValueError("overrides is not read without project: there is no advice to override")
        return self
