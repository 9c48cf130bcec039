"""The most expensive step that a stage will meet, as examples and as micro-batches made as training makes them.

If the data are on this machine their lengths are measured, by the same preparation as in training. For other data every
length is the largest that the run file allows, which gives an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm, Experience, Group, Online
from align.core.data import step_plan
from align.core.data.datasets import DatasetBuilder
from align.core.data.examples import Example, Examples, InMemory, TokenSequence
from align.core.data.mixture import load_records
from align.core.models.load_and_export import load_tokenizer
from align.core.models.packing import VARLEN
from align.core.online.phases import extent, groups_per_phase
from align.schemas.engine import MICRO_TOKENS, SAMPLED_TOKENS, Batches, Micro, Needs
from align.schemas.errors import AlignError
from align.schemas.run import Stage

CHEAP = 64 * 2**20
"""Largest size of data, in bytes, that are tokenised to measure their lengths; larger files take minutes."""
SEARCHED = 300
"""Number of steps among which the most expensive one is searched."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The most expensive step, as examples and as numbers. In an online stage the examples stand for completions."""

    examples: Sequence[Example]
    batches: Batches


def needs_of(algorithm: Algorithm) -> Needs:
    """Return an algorithm's requirements, as the formulas of the estimate take them."""
    pairs = "preference" in algorithm.learns_from or algorithm.name == "online_dpo"
    read = int(algorithm.uses_reference) + int(algorithm.critic is not None)
    return Needs(
        head=algorithm.head,
        sequences=2 if pairs else 1,
        reference=algorithm.uses_reference,
        ahead=algorithm.reference_known_ahead,
        online=algorithm.samples,
        learns=not algorithm.makes_rows,
        group=algorithm.num_generations,
        passes=algorithm.num_iterations,
        critic=algorithm.critic is not None,
        passes_read=read + int(algorithm.samples and measures(algorithm)),
    )


def measures(algorithm: Algorithm) -> bool:
    """Return True if an online algorithm needs its completions' log-probabilities before it trains on them."""
    assert isinstance(algorithm, Online)
    rollout = algorithm.rollout
    several = rollout.batches * algorithm.num_iterations > 1
    own = rollout.importance_sampling_correction.type == "none" and rollout.generator.type == "local"
    return several or algorithm.measures_logp or not own


def measured(stage: Stage, algorithm: Algorithm) -> tuple[Examples | None, str]:
    """Return the training examples if measuring them is cheap; else None and the reason."""
    if stage.data.stream:
        return None, "data.stream"
    if not Path(stage.model.path).expanduser().is_dir():
        return None, "the model's tokenizer is not here"
    size = _size(stage)
    if size is None:
        return None, "the data are not here"
    if size > CHEAP:
        return None, f"the data have {size / 2**20:.0f} MiB"
    try:
        tokenizer = load_tokenizer(stage.model, algorithm.head)
        return DatasetBuilder(stage, tokenizer, algorithm, None).build().train, ""
    except AlignError as error:
        return None, f"the data cannot be prepared: {error.problems[0].what}"


def _rows(stage: Stage, algorithm: Algorithm, why: str) -> tuple[int | None, str]:
    """Return the number of training rows if only the tokenizer is missing and counting is cheap; else None and why."""
    if stage.data.stream:
        return None, "a stream has no end"
    size = _size(stage)
    if size is None:
        return None, f"{', '.join(source.path for source in stage.data.train)}: not here"
    if size > CHEAP:
        return None, f"the data have {size / 2**20:,.0f} MiB, too many to count here"
    try:
        return len(load_records(stage.data, algorithm.learns_from).train), ""
    except AlignError as error:
        return None, f"the data cannot be read: {error.problems[0]}".replace("\n    ", ": ") or why


def _size(stage: Stage) -> int | None:
    """Return the size of the data in bytes, None if some of them are not on this machine."""
    size = 0
    for source in stage.data.train:
        path = Path(source.path).expanduser()
        if not path.exists():
            return None
        files = [path] if path.is_file() else path.rglob("*.*")
        size += sum(file.stat().st_size for file in files)
    return size


def planned(stage: Stage, algorithm: Algorithm, kind: str, world: int, layout: step_plan.Layout = "padded") -> Planned:
    """Return the most expensive step of a stage.

    kind: of device, ``cpu`` or ``cuda``. world: number of devices that share a step.
    """
    examples, why = measured(stage, algorithm)
    known = examples is not None and len(examples) > 0
    if algorithm.samples:
        step, sampling = _online(stage, algorithm, examples if known else None, kind, world, layout)
    else:
        held: Examples = examples if examples is not None and known else _longest(stage, algorithm)
        step, sampling = _largest(stage, held, kind, world, layout), {}
    ranks = micros_of(stage, step, kind, world, layout)
    rows, unknown = (len(examples), "") if examples is not None and known else _rows(stage, algorithm, why)
    tokens = int(examples.lengths.sum()) if examples is not None and known else None
    batches = Batches(
        micros=max(ranks, key=_cost),
        measured=known,
        source="lengths of the data" if known else f"data.max_length ({stage.data.max_length}): {why}",
        rows=rows,
        tokens=tokens,
        steps=_steps(stage, algorithm, rows),
        unknown=unknown,
        ranks=tuple(ranks),
        **sampling,
    )
    return Planned(step, batches)


def micros_of(
    stage: Stage, step: Sequence[Example], kind: str, world: int, layout: step_plan.Layout
) -> list[tuple[Micro, ...]]:
    """Return the micro-batches of a step: [rank][micro-batch]."""
    limit = stage.train.micro_batch_tokens or MICRO_TOKENS[kind]
    size = stage.train.micro_batch_size
    ranks = step_plan.plan_micro_batches(step, world, limit, size, layout, step_plan.FORWARD[kind])
    masked = stage.model.attn_implementation not in VARLEN
    return [
        tuple(_micro([step[i] for i in micro.examples], micro.trees, layout, masked) for micro in micros)
        for micros in ranks
    ]


def _cost(micros: Sequence[Micro]) -> tuple[int, int]:
    """Return what makes a rank's step expensive in memory: its largest micro-batch, then how many there are."""
    return max(micro.tokens for micro in micros), len(micros)


def _micro(
    examples: Sequence[Example], trees: Sequence[tuple[int, ...]], layout: step_plan.Layout, masked: bool
) -> Micro:
    sequences = [sequence for example in examples for sequence in example.sequences]
    scored = sum(int(sequence.scored.sum()) for sequence in sequences)
    if trees:
        sizes = step_plan.tree_sizes([s.tokens for s in sequences], [tree for each in trees for tree in each])
        packed = layout.startswith("packed")
        return Micro(1 if packed else len(sizes), sum(sizes) if packed else max(sizes), scored, padded=masked)
    lengths = [len(sequence) for sequence in sequences] or [1]
    if layout.startswith("packed"):
        return Micro(1, sum(lengths), scored, padded=masked and len(lengths) > 1)
    return Micro(len(lengths), max(lengths), scored, padded=len(set(lengths)) > 1)


def _largest(stage: Stage, examples: Examples, kind: str, world: int, layout: step_plan.Layout) -> list[Example]:
    """Return the step of the first epoch with the largest micro-batch; of equal ones the step with most of them."""
    steps = step_plan.epoch_order(examples.sources, examples.weights, stage.seed, 0, stage.train.batch_size)[:SEARCHED]
    if len(steps) == 1:
        return [examples[int(i)] for i in steps[0]]

    def cost(step: Any) -> tuple[int, int]:
        return max(map(_cost, micros_of(stage, [examples[int(i)] for i in step], kind, world, layout)))

    return [examples[int(i)] for i in max(steps, key=cost)]


def _longest(stage: Stage, algorithm: Algorithm) -> InMemory:
    """Return one step of examples of the greatest length allowed, with every token scored but the first."""
    kinds = {"preference": ("chosen", "rejected"), "unpaired": ("completion",), "text": ("text",)}
    roles = kinds.get(algorithm.learns_from[0], ("completion",))
    scored = np.arange(stage.data.max_length) > 0
    unpaired = algorithm.learns_from[0] == "unpaired"
    examples = []
    for i in range(stage.train.batch_size):
        # Each sequence of a token of its own: data that are not known may have no common prefix.
        first = i * len(roles)
        sequences = tuple(
            TokenSequence(role, np.full(len(scored), first + place, np.int32), scored)
            for place, role in enumerate(roles)
        )
        columns = {"label": float(i % 2)} if unpaired else {}
        examples.append(Example("longest", sequences, columns))
    return InMemory(examples)


def _online(
    stage: Stage, algorithm: Algorithm, prompts: Examples | None, kind: str, world: int, layout: step_plan.Layout
) -> tuple[list[Example], dict[str, int]]:
    """Return the examples of the step with the longest prompts and completions, and the sizes of sampling.

    Sampling: completions at a time, prompts at a time, tokens of the longest prompt and of the longest completion.
    """
    assert isinstance(algorithm, Online) and stage.rollout is not None
    answer, groups = stage.rollout.sampling.max_completion_length, groups_per_phase(stage, algorithm)
    phases = [[stage.data.max_length] * groups]
    if prompts is not None:
        order = np.concatenate(step_plan.epoch_order(prompts.sources, prompts.weights, stage.seed, 0, len(prompts)))
        lengths = prompts.lengths[np.resize(order, max(len(order), groups))].tolist()
        phases = [lengths[i : i + groups] for i in range(0, len(lengths) - groups + 1, groups)][:SEARCHED]

    def cost(step: Sequence[Example]) -> tuple[int, int]:
        return max(map(_cost, micros_of(stage, step, kind, world, layout)))

    steps = []
    for phase in phases:
        made = [_group(algorithm, place, length, answer) for place, length in enumerate(phase)]
        steps.append(_learned(stage, algorithm, made))
    longest = max(map(max, phases))
    limit = int(stage.rollout.generator.settings.get("batch_tokens", SAMPLED_TOKENS))
    at_a_time = max(1, min(-(-groups // world) * algorithm.num_generations, limit // (longest + answer)))
    return max(steps, key=cost), {
        "answers": at_a_time,
        "prompts": -(-at_a_time // algorithm.num_generations),
        "prompt": longest,
        "answer": answer,
    }


def _learned(stage: Stage, algorithm: Online, groups: Sequence[Group]) -> list[Example]:
    """Return the examples that the first step of a phase is trained on, made from its completions."""
    assert stage.rollout is not None
    if algorithm.makes_rows:
        return []
    advantages = contract.compute_advantages(algorithm, groups)
    token_data = dict(advantages.token_data)
    if stage.rollout.batches * algorithm.num_iterations > 1:
        token_data["old_logp"] = [e.sampled_logp for group in groups for e in group]
    made = contract.examples(algorithm, groups, type(advantages)(token_data, advantages.keep, advantages.metrics))
    return [example for group in made[: max(1, len(made) // stage.rollout.batches)] for example in group]


def _group(algorithm: Online, place: int, prompt: int, answer: int) -> Group:
    """Return completions of one prompt with all measurements; rewards differ, so the group is not left out.

    They share their prompt's tokens and no more, and groups share nothing. place: of the group in its phase.
    """
    first = place * (algorithm.num_generations + 1)
    zeros = np.zeros(answer, np.float32)
    return [
        Experience(
            "longest",
            np.full(prompt, first, np.int32),
            np.full(answer, first + 1 + i, np.int32),
            "length",
            zeros,
            float(i % 2),
            {},
            zeros,
            zeros if algorithm.uses_reference else None,
            zeros if algorithm.critic is not None else None,
        )
        for i in range(algorithm.num_generations)
    ]


def _steps(stage: Stage, algorithm: Algorithm, rows: int | None) -> int | None:
    if stage.train.max_steps is not None or rows is None:
        return stage.train.max_steps
    if algorithm.samples:
        assert isinstance(algorithm, Online)
        return extent(stage, algorithm, rows)[1]
    return max(1, round(stage.train.num_train_epochs * -(-rows // stage.train.batch_size)))
