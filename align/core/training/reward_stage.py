"""What an online stage needs beside a policy: settings that go together, rows that can be scored, critic, collector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.algorithm.online import Online
from align.core.data.examples import Examples
from align.core.engine.steps import MicroBatcher
from align.core.generation.base import Generator, ModelHandle
from align.core.models.loading import build_policy, end_tokens, resolve_model_path
from align.core.models.packing import limits_for
from align.core.models.policy import Policy
from align.core.models.reference import ReferenceModel
from align.core.online.collect import Collector
from align.core.plugin_system.registry import registry
from align.core.rewards.base import RewardContext
from align.core.rewards.scorer import Scorer, reward_of
from align.core.training.datasets import Prepared
from align.core.util.progress import working
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Hardware
from align.schemas.records import Record
from align.schemas.run import RewardChoice, Stage

NAMED = 5
"""Rows that a message names."""


def configure(algorithm: Online, stage: Stage) -> None:
    """Tell an algorithm how it will sample. Raises AlignError where the two do not go together."""
    if stage.rollout is None:
        raise AlignError(
            f"is missing: {algorithm.name} samples its own answers",
            "give at least rollout.rewards (`align reward list` names them)",
            where=f"{stage.name}: rollout",
        )
    try:
        algorithm.configure(stage.rollout)
    except AlignError as error:
        named = [Problem(f"{stage.name}: {p.where}" if p.where else stage.name, p.what, p.fix) for p in error.problems]
        raise AlignError.gather(named) from None


def refuse_unusable_rows(rows: Iterable[Record], choices: Sequence[RewardChoice]) -> None:
    """Raise AlignError for rows that a reward could never score."""
    problems = []
    rewards = [(choice.type, reward_of(choice)) for choice in choices]
    for name, reward in rewards:
        found = [(row.source, why) for row in rows if (why := reward.unfit(row.columns))]
        if found:
            more = f" (and {len(found) - NAMED} rows more)" if len(found) > NAMED else ""
            fix = f"reward {name} cannot score it{more}: fix the rows, or leave them out"
            problems += [Problem(source, why, fix) for source, why in found[:NAMED]]
    if problems:
        raise AlignError.gather(problems)


def build_critic(algorithm: Online, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> Policy | None:
    """The value model that an algorithm wants, or None.

    Raises AlignError where it does not read the policy's tokens.
    """
    spec = algorithm.critic
    if spec is None:
        return None
    model = stage.model
    if spec.path is not None:
        model = model.model_copy(update={"path": spec.path, "revision": None})
    critic, own = build_policy(model, "reward", seed=stage.seed, dropout=False)
    if own.get_vocab() != tokenizer.get_vocab():
        raise AlignError(
            "has another vocabulary than the policy, and a critic reads the policy's tokens",
            "take a reward model trained from the same base",
            where=f"critic {model.path}",
        )
    critic.head = "value"
    return critic


def make_collector(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    critic: Policy | None,
    reference: ReferenceModel | None,
    cutter: MicroBatcher,
    hardware: Hardware,
    prepared: Prepared,
    home: Path,
    forward: Callable[[], AbstractContextManager[object]],
) -> Collector:
    """What asks and scores, its generator and rewards not yet opened (``opened``)."""
    assert stage.rollout is not None
    generator: Generator = registry.build("generator", stage.rollout.generator)
    if not generator.trainable:
        raise AlignError(
            f"is {generator.name}, which cannot follow the weights as they change",
            "use local or vllm",
            where=f"{stage.name}: rollout.generator",
        )
    place = RewardContext(
        rank=cutter.rank,
        world_size=cutter.world_size,
        seed=stage.seed,
        accelerator=hardware.accelerator,
        home=home,
    )
    gold = stage.rollout.gold
    prompts = [prepared.train, *(held_out.examples for held_out in prepared.held_out)]
    context = max(int(held.lengths.max()) for held in prompts) + stage.rollout.sampling.max_completion_length
    for whose, network in (("model", policy), ("critic", critic)):
        if network is not None:
            limits = [limit for limit in limits_for(network, context) if limit is not None]
            _refuse_overlong(stage, prompts, min(limits, default=None), whose)
    return Collector(
        stage.rollout,
        generator,
        ModelHandle(
            resolve_model_path(stage.model.path, stage.model.revision, stage.model.trust_remote_code),
            stage.model,
            tokenizer,
            end_tokens(policy.unwrapped, tokenizer),
            context,
            policy,
        ),
        Scorer(stage.rollout.rewards, place),
        None if gold is None else Scorer([gold], place),
        critic,
        reference,
        cutter,
        stage.seed,
        forward,
    )


def _refuse_overlong(stage: Stage, prompts: Sequence[Examples], limit: int | None, whose: str) -> None:
    """Raise AlignError, with the rows, for prompts that leave no room for an answer in a network's positions.

    Also for a ``max_completion_length`` that does not fit after the longest prompt. limit: the network's number of
    positions, None for any number. whose: ``model`` or ``critic``.
    """
    assert stage.rollout is not None
    wanted = stage.rollout.sampling.max_completion_length
    if limit is None or max(int(held.lengths.max()) for held in prompts) + wanted <= limit:
        return
    # Not before: this reads every example, and in most runs all fit.
    rows = [(length, held[i].source) for held in prompts for i, length in enumerate(held.lengths.tolist())]
    fix = f"leave long prompts out (data.max_length: {max(1, limit - wanted)}, data.truncation_mode: drop)"
    none_fits = [(length, source) for length, source in rows if length >= limit]
    if none_fits:
        more = f" (and {len(none_fits) - NAMED} rows more)" if len(none_fits) > NAMED else ""
        raise AlignError.gather(
            Problem(source, f"has {length} tokens, and the {whose} {limit} positions: no answer fits", fix + more)
            for length, source in none_fits[:NAMED]
        )
    longest, source = max(rows, key=lambda row: row[0])
    over = sum(length + wanted > limit for length, _ in rows)
    raise AlignError(
        f"is {wanted}: with the longest prompt ({longest} tokens, {source}) that is {longest + wanted}, and the "
        f"{whose} has {limit} positions; so it is for {over} of {len(rows)} prompts",
        f"take at most {limit - longest}, or {fix}",
        where=f"{stage.name}: rollout.sampling.max_completion_length",
    )


@contextmanager
def opened(collector: Collector) -> Iterator[None]:
    """Start generator and rewards for the block, and close them whatever happens."""
    try:
        with working("starting rewards and generator"):
            collector.scorer.open()
            if collector.gold is not None:
                collector.gold.open()
            with contract.calling(collector.generator, "open"):
                collector.generator.open(collector.handle)
        yield
    finally:
        collector.generator.close()
        collector.scorer.close()
        if collector.gold is not None:
            collector.gold.close()
