"""The contract of algorithms: their base classes, what they return, and the check of it where the engine calls them.

A breach names the plugin; a generator's is checked here too, by the same rules.
``align.testing`` makes the same calls, so what stops a run here fails a plugin's own test first.
"""

from __future__ import annotations

import copy
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.core.data.batch import Batch
from align.core.data.examples import Example, TokenSequence
from align.core.generation.generator_base import Floats, Generator, Interrupt, Request, Sample, Tokens
from align.core.plugin_system.registry import KINDS, registry
from align.core.util.error_line import error_line
from align.schemas.base import Config
from align.schemas.errors import AlignError
from align.schemas.records import Content, Kind
from align.schemas.run import Rollout, Sampling

# --- algorithms that learn from rows ---------------------------------------------------------------------------------

# The contract between an algorithm and the engine: a Batch of ragged scored tokens in, unreduced LossTerms out.
#
# Shape letters: T scored tokens, B sequences, E examples of one micro-batch. Prompt tokens and padding never appear.


class LossTerm(NamedTuple):
    """One summand of a loss, unreduced: the engine makes it ``weight * sum(values) / count over the whole step``.

    per names what one value stands for: ``token``, ``sequence``, ``example``, or ``token:ROLE`` for the scored
    tokens of one role. The count is over all micro-batches and all ranks, so gradients do not depend on the cut. Where
    messages have weights, a token adds the weight of its message to the count, and a loss that is averaged over tokens
    must pass its values through ``Batch.by_message``.
    """

    values: Tensor
    per: str
    weight: float = 1.0


class Metric(NamedTuple):
    """Values to log, reduced over the whole optimizer step: the mean of all values, or their sum, min or max.

    where: True for the values that count, of the same shape; None: all of them. (``values[mask]`` gives the same
    number, but on a GPU it makes the host wait for the mask.)
    """

    values: Tensor
    reduce: Literal["mean", "sum", "min", "max"] = "mean"
    where: Tensor | None = None


class LossOutput(NamedTuple):
    """The result of ``Algorithm.loss``: the terms of the loss, and metrics to log by name."""

    terms: Sequence[LossTerm]
    metrics: Mapping[str, Metric | Tensor]

    def loss_contribution(self, counts: Mapping[str, float]) -> Tensor:
        """Return a micro-batch's part of the step's loss. counts: of the whole step (``step_plan.denominators``)."""
        shares = [term.weight * term.values.sum() / max(counts.get(term.per, 0.0), 1.0) for term in self.terms]
        return torch.stack(shares).sum()


@dataclass(frozen=True, slots=True)
class CriticSpec:
    """The value model that an algorithm wants next to the policy.

    path: what it starts from (a directory, a hub id, a stage's export); None: the policy's own starting weights. Its
    head is that of a reward model where the directory has one, else new. warmup: optimizer steps in which only the
    critic learns.
    """

    path: str | None
    learning_rate: float
    warmup: int = 0


class Algorithm:
    """Base class of algorithms that learn from given data: subclass, set the class attributes, write ``loss``.

    A plugin file starts with the equation as a pure function and ends with the class that feeds it.
    """

    name: ClassVar[str]
    """Its name in run files."""
    paper: ClassVar[str]
    """The address of the paper that has the equation."""
    learns_from: ClassVar[tuple[Kind, ...]]
    """Kinds of records it takes."""
    samples: ClassVar[bool] = False
    """True if it learns from completions that it samples itself (``align.core.algorithm.contract.Online``)."""
    makes_rows: ClassVar[bool] = False
    """True if it learns nothing and makes rows for a later stage (``align.core.algorithm.contract.RowGenerator``)."""
    head: ClassVar[Literal["language", "reward"]] = "language"
    """The model it trains: token log-probabilities, or one score per sequence."""
    learning_rate: ClassVar[float]
    """The vetted peak rate for full fine-tuning; the run file may set another."""
    weighs_messages: ClassVar[bool] = False
    """True if its loss applies weights of messages between 0 and 1 (``Batch.by_message``); others take only 0 and 1."""
    dropout: ClassVar[bool] = True
    """True if the model's dropout is on while training."""
    goal: ClassVar[tuple[str, Literal["min", "max"]]] = ("loss", "min")
    """The held-out metric that says which checkpoint is best, and whether lower or higher is better."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that name a file or a model: a resumed run compares the content there, not the spelling of the path."""

    class Config(Config):
        """Settings in the run file; every field has a docstring that names its source."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def uses_reference(self) -> bool:
        """True if the loss reads ``ref_logp_T``."""
        return False

    @property
    def scores_prompt(self) -> bool:
        """True if every token of a text carries loss (pretrain); False: the assistant's only."""
        return False

    @property
    def num_generations(self) -> int:
        """Completions sampled for each prompt; 1 for an algorithm that samples none."""
        return 1

    @property
    def num_iterations(self) -> int:
        """Times that each example is learned from before the next ones are sampled; 1 for one that samples none."""
        return 1

    @property
    def critic(self) -> CriticSpec | None:
        """The value model that it wants to be trained next to the policy."""
        return None

    @property
    def reference_known_ahead(self) -> bool:
        """True if all sequences are known before training, so that the reference can be measured once, by then."""
        return not self.samples and type(self).auxiliary is Algorithm.auxiliary

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of one micro-batch, unreduced."""
        raise NotImplementedError

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Further numbers to log, made of the reduced ones of a step or a held-out set (a perplexity)."""
        return {}

    def auxiliary(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Further examples that ``statistics`` is computed on, made from all examples of one optimizer step.

        Must depend on ``examples`` only (KTO's mismatched pairs). Default: none.
        """
        return ()

    def statistics(self, batch: Batch) -> Mapping[str, Tensor]:
        """Values [N] over the auxiliary examples, whose means over the step ``loss`` finds in ``batch.step``.

        Runs without gradient, before the step's first micro-batch.
        """
        return {}


# --- shared by several algorithms ------------------------------------------------------------------------------------

# Equations, and the metrics that dashboards know by TRL's names.
#
# Everything here is a pure function of a Batch or of plain tensors. [T] scored tokens, [B] sequences, [E] examples.


def logistic(x: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(x) − ε log σ(−x): the log loss of a preference whose label is wrong with probability ε."""
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def token_metrics(batch: Batch, correct_of: str | None = None) -> dict[str, Metric]:
    """Return ``entropy`` and ``mean_token_accuracy`` over scored tokens, the latter over one role's tokens if named."""
    metrics = {}
    if batch.entropy_T is not None:
        metrics["entropy"] = Metric(batch.entropy_T)
    if batch.correct_T is not None:
        correct = batch.correct_T.to(batch.logp_T.dtype)
        metrics["mean_token_accuracy"] = Metric(batch.tokens_of(correct_of, correct) if correct_of else correct)
    return metrics


def preference_metrics(batch: Batch, chosen_E: Tensor, rejected_E: Tensor) -> dict[str, Metric]:
    """Return the metrics that TRL logs of pairs: rewards, log-probabilities, logits, entropy, token accuracy.

    chosen_E, rejected_E: the implicit rewards of each pair.
    """
    with torch.no_grad():
        logp_B = batch.sum_per_sequence(batch.logp_T)
        metrics = {
            "rewards/chosen": Metric(chosen_E),
            "rewards/rejected": Metric(rejected_E),
            "rewards/accuracies": Metric((chosen_E > rejected_E).to(chosen_E.dtype)),
            "rewards/margins": Metric(chosen_E - rejected_E),
            "logps/chosen": Metric(batch.select("chosen", logp_B)),
            "logps/rejected": Metric(batch.select("rejected", logp_B)),
        }
        if batch.logit_T is not None:
            metrics["logits/chosen"] = Metric(batch.tokens_of("chosen", batch.logit_T))
            metrics["logits/rejected"] = Metric(batch.tokens_of("rejected", batch.logit_T))
        return metrics | token_metrics(batch, correct_of="chosen")


# --- algorithms that learn from rewards ------------------------------------------------------------------------------

# The contract of online algorithms: two choices, advantages (from rewards) and token loss.
#
#     prompts -> completions -> rewards -> [log-probabilities, values] -> advantages -> examples -> the offline step
#
# Everything but advantages and loss is the engine's: sampling, scoring, groups without variance, log-probabilities,
# the averages, resuming.


@dataclass(slots=True)
class Experience:
    """One sampled completion and what was measured of it. T tokens in the completion.

    reward      the weighted mean of its rewards' scores; None where all of them abstained
    parts       the score of each reward, by name; None where it abstained
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


def name_of(plugin: Any) -> str:
    """Return a plugin object's kind and name and the plugin that provides it, for messages."""
    kinds = {kind.base: kind.name for kind in KINDS.values() if kind.base}
    bases = [f"{base.__module__}:{base.__name__}" for base in type(plugin).__mro__]
    kind = next((kinds[base] for base in bases if base in kinds), "plugin")
    name = getattr(plugin, "name", type(plugin).__qualname__)
    try:
        return f"{kind} {name!r} of plugin {registry.find(kind, name).plugin}"
    except (AlignError, KeyError):  # a class that is not registered, as in a test of it
        return f"{kind} {name!r} of {type(plugin).__module__}"


@contextmanager
def calling(plugin: Any, method: str) -> Iterator[None]:
    """Raise what fails in the block as an AlignError that names the plugin, its method and the line.

    AlignErrors and interrupts pass unchanged, and so do errors of the machine (memory, disk, network), which are not
    the plugin's fault.
    """
    try:
        yield
    except (AlignError, Interrupt, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _breach(plugin, f"failed in {method}: {error_line(error, _source_of(plugin))}") from error


def loss(algorithm: Algorithm, batch: Batch) -> LossOutput:
    """Return ``algorithm.loss(batch)``.

    Raises AlignError where it fails, where a term has another number of values than what it is counted per, where a
    metric is no tensor, and where it changes a tensor of the batch in place.
    """
    given = tensors(batch)
    # A tensor's version counter instead of a copy: loss runs for every micro-batch, and must not wait for the GPU.
    before = {name: _version(tensor) for name, tensor in given.items()}
    with calling(algorithm, "loss"):
        outcome = algorithm.loss(batch)
    if fault := _outcome_fault(outcome, batch):
        raise _breach(algorithm, f"loss {fault}")
    if changed := [name for name, tensor in given.items() if _version(tensor) != before[name]]:
        raise _breach(algorithm, f"loss changed batch.{changed[0]} in place, which others read after it")
    return outcome


def compute_advantages(algorithm: Online, groups: Sequence[Group]) -> Advantages:
    """Return ``algorithm.compute_advantages(groups)``.

    Raises AlignError where it fails, where it has not one finite number for each token of each answer, where it keeps
    an answer that no reward scored, and where it changes what was measured.
    """
    flat = [experience for group in groups for experience in group]
    before = copy.deepcopy(flat)  # NumPy has no version counter; once per phase a copy costs little
    with calling(algorithm, "compute_advantages"):
        given = algorithm.compute_advantages(groups)
    for experience, was in zip(flat, before, strict=True):
        for each in fields(Experience):
            if not _same(getattr(experience, each.name), getattr(was, each.name)):
                raise _breach(
                    algorithm, f"compute_advantages changed the {each.name} of an answer, which others read after it"
                )
    if fault := _advantages_fault(given, flat):
        raise _breach(algorithm, f"compute_advantages {fault}")
    return given


def examples(algorithm: Online, groups: Sequence[Group], given: Advantages) -> list[list[Example]]:
    """Return ``algorithm.examples(groups, given)``.

    Raises AlignError where it fails, and where it gives not one list for each group, or sequences that do not fit
    together in a batch.
    """
    with calling(algorithm, "examples"):
        made = [list(group) for group in algorithm.examples(groups, given)]
    if len(made) != len(groups):
        raise _breach(algorithm, f"examples gave {len(made)} lists of examples for {len(groups)} groups")
    if fault := _examples_fault([example for group in made for example in group]):
        raise _breach(algorithm, f"examples {fault}")
    return made


def generate(
    generator: Generator,
    requests: Sequence[Request],
    sampling: Sampling,
    on_group: Callable[[int, Sequence[Sample]], None] | None = None,
    **how: Callable[..., Any],
) -> list[list[Sample]]:
    """Return ``generator.generate(requests, sampling, **how)``, with ``on_group`` called once for each request.

    Raises AlignError where it fails, and where it has not a sample for each seed of each request, with a finite
    log-probability for each token (a generator that is not trainable may have none), or returns other completions than
    it reported to ``on_group``.
    """
    reported: dict[int, Sequence[Sample]] = {}

    def report(number: int, samples: Sequence[Sample]) -> None:
        # Checked now: rewards begin on these completions before ``generate`` returns.
        if number in reported or not 0 <= number < len(requests):
            raise _breach(generator, f"generate reported request {number} twice, or there is none of that number")
        if fault := _samples_fault([samples], [requests[number]], sampling, generator.trainable):
            raise _breach(generator, f"generate {fault}")
        reported[number] = samples
        if on_group is not None:
            on_group(number, samples)

    if on_group is not None and "on_group" in inspect.signature(generator.generate).parameters:
        how["on_group"] = report
    with calling(generator, "generate"):
        groups = generator.generate(requests, sampling, **how)
    if fault := _samples_fault(groups, requests, sampling, generator.trainable):
        raise _breach(generator, f"generate {fault}")
    for number, samples in enumerate(groups):
        if number not in reported:
            report(number, samples)
        elif any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(samples, reported[number], strict=True)):
            raise _breach(generator, f"generate returned other completions of request {number} than it reported")
    return groups


def logp(generator: Generator, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
    """Return ``generator.logp(sequences)``. Raises AlignError where it fails or has not a number for each token."""
    with calling(generator, "logp"):
        found = generator.logp(sequences)
    lengths = [len(answer) for _, answer in sequences]
    if [len(values) for values in found] != lengths:
        raise _breach(generator, f"logp gave {[len(v) for v in found]} numbers for answers of {lengths} tokens")
    return found


# --- faults ----------------------------------------------------------------------------------------------------------


def _outcome_fault(outcome: Any, batch: Batch) -> str:
    if not isinstance(outcome, LossOutput):
        return f"returned a {type(outcome).__name__}; return align.LossOutput(terms, metrics)"
    if not outcome.terms:
        return "returned no term; there is nothing to learn from"
    sizes = {"token": batch.logp_T.numel(), "sequence": batch.sequences, "example": batch.examples}
    terms: Sequence[Any] = outcome.terms
    for term in terms:
        if not (isinstance(term, LossTerm) and isinstance(term.values, Tensor)):
            return f"returned a {type(term).__name__} as a term; return align.LossTerm(values, per)"
        role = term.per.removeprefix("token:")
        if term.per not in sizes and (role == term.per or role not in batch.roles):
            known = [*sizes, *(f"token:{name}" for name in batch.roles)]
            return f"counts a term per {term.per!r}; there is {', '.join(known)}"
        want = sizes[term.per] if term.per in sizes else batch.tokens_of(role, batch.sequence_T).numel()
        if term.values.numel() != want:
            return f"gave {term.values.numel()} values per {term.per}, of which the micro-batch has {want}"
    for name, metric in outcome.metrics.items():
        if not isinstance(metric.values if isinstance(metric, Metric) else metric, Tensor):
            return f"gave the metric {name!r} as a {type(metric).__name__}; give a tensor of values, not averaged"
    return ""


def _advantages_fault(given: Any, flat: Sequence[Experience]) -> str:
    if not isinstance(given, Advantages):
        return f"returned a {type(given).__name__}; return align.Advantages(token_data, keep)"
    for name, values in given.token_data.items():
        if len(values) != len(flat):
            return f"gave {len(values)} arrays of {name!r} for {len(flat)} answers"
        for experience, array in zip(flat, values, strict=True):
            found = np.asarray(array)
            if found.shape != (len(experience.tokens),):
                return (
                    f"gave {name!r} of shape {found.shape} for an answer of {len(experience.tokens)} tokens to "
                    f"{experience.source}"
                )
            if not np.isfinite(found).all():
                scored = "" if experience.reward is not None else ", which no reward scored"
                return f"gave a {name!r} that is not finite for an answer to {experience.source}{scored}"
    keep = np.asarray(given.keep)
    if keep.shape != (len(flat),) or keep.dtype != bool:
        return f"gave keep of shape {keep.shape} and type {keep.dtype}; it is one bool for each of {len(flat)} answers"
    kept = (experience for experience, stays in zip(flat, keep, strict=True) if stays)
    if unscored := [experience.source for experience in kept if experience.reward is None]:
        return f"keeps an answer to {unscored[0]} that no reward scored: abstaining is not a reward of 0"
    metrics: Mapping[str, Any] = given.metrics
    for name, value in metrics.items():
        one = isinstance(value, np.ndarray | Tensor) and len(value.reshape(-1)) == 1
        if not (one or isinstance(value, numbers.Real)):
            return f"gave the metric {name!r} as a {type(value).__name__}; give one number"
    return ""


def _examples_fault(made: Sequence[Any]) -> str:
    names: set[str] | None = None
    for example in made:
        if not isinstance(example, Example):
            return f"gave a {type(example).__name__} among its examples; use align.Example"
        for sequence in example.sequences:
            scored = int(np.asarray(sequence.scored).sum())
            if not len(sequence) or sequence.scored[0]:
                return f"gave a sequence from {example.source} that is empty, or whose first token is scored"
            for name, values in sequence.token_data.items():
                if len(values) != scored:
                    return f"gave {len(values)} {name!r} for {scored} scored tokens from {example.source}"
            # All in one micro-batch are concatenated name by name.
            if names is not None and set(sequence.token_data) != names:
                return (
                    f"gave {sorted(sequence.token_data)} for the tokens of {example.source}, {sorted(names)} for others"
                )
            names = set(sequence.token_data)
    return ""


def _samples_fault(groups: Any, requests: Sequence[Request], sampling: Sampling, trainable: bool) -> str:
    if len(groups) != len(requests):
        return f"gave answers to {len(groups)} prompts of {len(requests)}"
    for request, group in zip(requests, groups, strict=True):
        if len(group) != len(request.seeds):
            return f"gave {len(group)} answers to a prompt that has {len(request.seeds)} seeds"
        for sample in group:
            if not isinstance(sample, Sample):
                return f"gave a {type(sample).__name__}; give align.Sample(tokens, logp, finish)"
            if not 1 <= len(sample.tokens) <= sampling.max_completion_length:
                return (
                    f"gave an answer of {len(sample.tokens)} tokens; it may have 1 to {sampling.max_completion_length}"
                )
            if len(sample.logp) != len(sample.tokens) and (trainable or len(sample.logp)):
                return f"gave {len(sample.logp)} log-probabilities for an answer of {len(sample.tokens)} tokens"
            if not np.isfinite(sample.logp).all():
                return "gave a log-probability that is not finite for a token that it has drawn"
            if sample.finish not in ("stop", "length"):
                return f"gave the finish {sample.finish!r}; it is 'stop' or 'length'"
    return ""


# --- help ------------------------------------------------------------------------------------------------------------


def _breach(plugin: Any, fault: str) -> AlignError:
    shown = "; align.testing.check_algorithm shows it in a test" if isinstance(plugin, Algorithm) else ""
    return AlignError(fault, f"this is the plugin's to fix{shown}", where=name_of(plugin))


def _source_of(plugin: Any) -> str | None:
    """Return the file that a plugin's class is written in, or None where there is none."""
    try:
        return inspect.getsourcefile(type(plugin))
    except TypeError:
        return None


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Return the batch's tensors by the names that a plugin uses for them: ``logp_T``, ``columns['weight']``."""
    found: dict[str, Any] = {name: getattr(batch, name) for name in Batch.__slots__}
    for group in ("columns", "token_data", "step"):
        mapping: Mapping[str, Any] = found.pop(group)
        found |= {f"{group}[{name!r}]": value for name, value in mapping.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was changed in place; autograd counts that, except of inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one == other)
