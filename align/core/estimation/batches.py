"""The batches that a stage will meet, cut as training cuts them: the dearest step of the first epoch.

Of data that are here the lengths are measured, by the very preparation that training does; of others the longest that
the run file allows stands in, which is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.core.algorithm import contract
from align.core.algorithm.base import Algorithm
from align.core.algorithm.online import Experience, Group, Online
from align.core.data import step_plan
from align.core.data.examples import Example, Examples, InMemory, TokenSequence
from align.core.data.mixture import load_records
from align.core.models.loading import load_tokenizer
from align.core.models.packing import VARLEN
from align.core.online.phases import extent, groups_per_phase
from align.core.training.datasets import DatasetBuilder
from align.schemas.engine import MICRO_TOKENS, Batches, Micro, Needs
from align.schemas.errors import AlignError
from align.schemas.run import Stage

CHEAP = 64 * 2**20
"""Bytes of data that are tokenised to see how long they are; larger files take minutes."""
LOOKED_AT = 300
"""Steps among which the dearest is looked for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The dearest step, as examples and as numbers. Of an online stage the examples are what its answers would be."""

    examples: Sequence[Example]
    batches: Batches


def needs_of(algorithm: Algorithm) -> Needs:
    """Return what an algorithm asks of the engine."""
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
    """Return true if an algorithm that samples has its completions' log-probabilities measured before it learns."""
    assert isinstance(algorithm, Online)
    rollout = algorithm.rollout
    several = rollout.batches * algorithm.num_iterations > 1
    own = rollout.importance_sampling_correction.type == "none" and rollout.generator.type == "local"
    return several or algorithm.measures_logp or not own


def measured(stage: Stage, algorithm: Algorithm) -> tuple[Examples | None, str]:
    """The training examples where looking at them is cheap; else None and why not."""
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
    """The rows to learn from where only the tokenizer is missing, and they are few enough to count; else why not."""
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
    """Bytes of the data, None where some of them are not here."""
    paths = [Path(source.path).expanduser() for source in stage.data.train]
    if not all(path.exists() for path in paths):
        return None
    return sum(file.stat().st_size for path in paths for file in ([path] if path.is_file() else path.rglob("*.*")))


def planned(stage: Stage, algorithm: Algorithm, kind: str, world: int, layout: step_plan.Layout = "padded") -> Planned:
    """The dearest step of a stage on a kind of device (``cpu``, ``cuda``) shared out over so many."""
    examples, why = measured(stage, algorithm)
    known = examples is not None and len(examples) > 0
    if algorithm.samples:
        step, sampling = _online(stage, algorithm, examples if known else None, kind, world, layout)
    else:
        held: Examples = examples if examples is not None and known else _longest(stage, algorithm)
        step, sampling = _dearest(stage, held, kind, world, layout), {}
    micros = micros_of(stage, step, kind, world, layout)
    rows, unknown = (len(examples), "") if examples is not None and known else _rows(stage, algorithm, why)
    tokens = int(examples.lengths.sum()) if examples is not None and known else None
    batches = Batches(
        micros=tuple(micros),
        measured=known,
        source="lengths of the data" if known else f"data.max_length ({stage.data.max_length}): {why}",
        rows=rows,
        tokens=tokens,
        steps=_steps(stage, algorithm, rows),
        unknown=unknown,
        **sampling,
    )
    return Planned(step, batches)


def micros_of(stage: Stage, step: Sequence[Example], kind: str, world: int, layout: step_plan.Layout) -> list[Micro]:
    """The micro-batches of rank 0."""
    limit = stage.train.micro_batch_tokens or MICRO_TOKENS[kind]
    lengths, size = [e.lengths for e in step], stage.train.micro_batch_size
    cuts = step_plan.make_micro_batches(lengths, world, limit, size, layout, step_plan.FORWARD[kind])
    masked = stage.model.attn_implementation not in VARLEN
    return [_micro([step[i] for i in micro], layout, masked) for micro in cuts[0]]


def _micro(examples: Sequence[Example], layout: step_plan.Layout, masked: bool) -> Micro:
    sequences = [sequence for example in examples for sequence in example.sequences]
    lengths = [len(sequence) for sequence in sequences] or [1]
    scored = sum(int(sequence.scored.sum()) for sequence in sequences)
    if layout == "packed":
        return Micro(1, sum(lengths), scored, padded=masked and len(lengths) > 1)
    return Micro(len(lengths), max(lengths), scored, padded=len(set(lengths)) > 1)


def _dearest(stage: Stage, examples: Examples, kind: str, world: int, layout: step_plan.Layout) -> list[Example]:
    """The step of the first epoch whose largest micro-batch is largest; among equals the one with most of them."""
    steps = step_plan.epoch_order(examples.sources, examples.weights, stage.seed, 0, stage.train.batch_size)[:LOOKED_AT]
    if len(steps) == 1:
        return [examples[int(i)] for i in steps[0]]

    def cost(step: Any) -> tuple[int, int]:
        micros = micros_of(stage, [examples[int(i)] for i in step], kind, world, layout)
        return max(micro.tokens for micro in micros), len(micros)

    return [examples[int(i)] for i in max(steps, key=cost)]


def _longest(stage: Stage, algorithm: Algorithm) -> InMemory:
    """One step of examples as long as may be, everything scored but the first token."""
    kinds = {"preference": ("chosen", "rejected"), "unpaired": ("completion",), "text": ("text",)}
    roles = kinds.get(algorithm.learns_from[0], ("completion",))
    tokens = np.zeros(stage.data.max_length, np.int32)
    scored = np.arange(len(tokens)) > 0
    unpaired = algorithm.learns_from[0] == "unpaired"
    return InMemory(
        [
            Example(
                "longest",
                tuple(TokenSequence(role, tokens, scored) for role in roles),
                {"label": float(i % 2)} if unpaired else {},
            )
            for i in range(stage.train.batch_size)
        ]
    )


def _online(
    stage: Stage, algorithm: Algorithm, prompts: Examples | None, kind: str, world: int, layout: step_plan.Layout
) -> tuple[list[Example], dict[str, int]]:
    """The examples of the step whose prompts are longest, their answers as long as may be; and who speaks."""
    assert isinstance(algorithm, Online) and stage.rollout is not None
    answer, groups = stage.rollout.sampling.max_completion_length, groups_per_phase(stage, algorithm)
    phases = [[stage.data.max_length] * groups]
    if prompts is not None:
        order = np.concatenate(step_plan.epoch_order(prompts.sources, prompts.weights, stage.seed, 0, len(prompts)))
        asked = prompts.lengths[np.resize(order, max(len(order), groups))].tolist()
        phases = [asked[i : i + groups] for i in range(0, len(asked) - groups + 1, groups)][:LOOKED_AT]

    def cost(step: Sequence[Example]) -> tuple[int, int]:
        micros = micros_of(stage, step, kind, world, layout)
        return max(micro.tokens for micro in micros), len(micros)

    steps = [_learned(stage, algorithm, [_group(algorithm, length, answer) for length in phase]) for phase in phases]
    longest = max(map(max, phases))
    limit = int(stage.rollout.generator.settings.get("batch_tokens", 32_768))
    at_a_time = max(1, min(-(-groups // world) * algorithm.num_generations, limit // (longest + answer)))
    return max(steps, key=cost), {
        "answers": at_a_time,
        "prompts": -(-at_a_time // algorithm.num_generations),
        "prompt": longest,
        "answer": answer,
    }


def _learned(stage: Stage, algorithm: Online, heard: Sequence[Group]) -> list[Example]:
    """What the first step of a phase learns from its answers."""
    assert stage.rollout is not None
    if algorithm.makes_rows:
        return []
    advantages = contract.compute_advantages(algorithm, heard)
    token_data = dict(advantages.token_data)
    if stage.rollout.batches * algorithm.num_iterations > 1:
        token_data["old_logp"] = [e.sampled_logp for group in heard for e in group]
    made = contract.examples(algorithm, heard, type(advantages)(token_data, advantages.keep, advantages.metrics))
    return [example for group in made[: max(1, len(made) // stage.rollout.batches)] for example in group]


def _group(algorithm: Online, prompt: int, answer: int) -> Group:
    """Answers to one prompt with everything measured, and rewards that differ."""
    zeros = np.zeros(answer, np.float32)
    return [
        Experience(
            "longest",
            np.zeros(prompt, np.int32),
            np.zeros(answer, np.int32),
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
