"""The contract of plugins, checked where the engine calls them: a breach names the plugin.

``align.testing`` makes the same calls, so what stops a run here fails a plugin's own test first.
"""

from __future__ import annotations

import copy
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.core.algorithm.base import Algorithm, LossOutput, LossTerm, Metric
from align.core.algorithm.online import Advantages, Experience, Group, Online
from align.core.data.batch import Batch
from align.core.data.examples import Example
from align.core.generation.base import Floats, Generator, Interrupt, Request, Sample, Tokens
from align.core.plugin_system.registry import KINDS, registry
from align.core.util.error_line import error_line
from align.schemas.errors import AlignError
from align.schemas.run import Sampling


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
    generator: Generator, requests: Sequence[Request], sampling: Sampling, **how: Callable[..., Any]
) -> list[list[Sample]]:
    """Return ``generator.generate(requests, sampling, **how)``.

    Raises AlignError where it fails, and where it has not a sample for each seed of each request, with a finite
    log-probability for each token (a generator that is not trainable may have none).
    """
    with calling(generator, "generate"):
        groups = generator.generate(requests, sampling, **how)
    if fault := _samples_fault(groups, requests, sampling, generator.trainable):
        raise _breach(generator, f"generate {fault}")
    return groups


def logp(generator: Generator, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
    """Return ``generator.logp(sequences)``. Raises AlignError where it fails or has not a number for each token."""
    with calling(generator, "logp"):
        found = generator.logp(sequences)
    lengths = [len(answer) for _, answer in sequences]
    if [len(values) for values in found] != lengths:
        raise _breach(generator, f"logp gave {[len(v) for v in found]} numbers for answers of {lengths} tokens")
    return found


# --- faults --------------------------------------------------------------------------------------------------------


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
        if term.per not in sizes and term.values.is_cuda:
            continue  # counting the tokens of a role would make the host wait for the GPU
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


# --- help ----------------------------------------------------------------------------------------------------------


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
