"""A stage that learns from the rewards of completions that it samples itself, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm, Online
from align.core.data.datasets import DatasetBuilder, Datasets
from align.core.data.examples import Examples
from align.core.engine import processes
from align.core.engine.steps import MicroBatcher, StepLoader
from align.core.generation.generator_base import Generator
from align.core.models.load_and_export import build_policy
from align.core.models.packing import limits_for
from align.core.models.policy import Policy
from align.core.online.phases import Collector, PhaseObserver, Prompts, RolloutSteps
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import RewardContext, set_global_step
from align.core.rewards.scorer import Scorer, reward_of
from align.core.training.sample_log import SampleLog
from align.core.training.stage import LoadedModel, PreparedStage, TrainingStage, autocast, refuse_stream
from align.core.util.progress import working
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Record
from align.schemas.run import RewardChoice, Stage

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from align.core.engine.module import StageHooks

MAX_NAMED_ROWS = 5
"""Most rows that a message names."""


class RewardStage(TrainingStage[RolloutSteps]):
    """A stage whose algorithm samples its own completions: grpo, rloo, ppo and the like."""

    def check_settings(self) -> None:
        """Give the algorithm its rollout settings. Raises AlignError where these, or the generator, do not fit it."""
        configure(self.algorithm, self.stage)
        refuse_stream(self.stage)
        assert self.stage.rollout is not None  # ``configure`` raises without
        generator: Generator = registry.build("generator", self.stage.rollout.generator)
        if not generator.trainable:
            raise AlignError(
                f"is {generator.name}, which cannot follow the weights as they change",
                "use local or vllm",
                where=f"{self.stage.name}: rollout.generator",
            )
        refuse_staleness(self.stage, self.algorithm, generator)

    def check_rows(self, data: Datasets) -> None:
        """Raise AlignError for prompts that a reward could never score."""
        assert self.stage.rollout is not None
        gold = self.stage.rollout.gold
        choices = [*self.stage.rollout.rewards, *([gold] if gold is not None else [])]
        refuse_unusable_rows(data.rows.values(), choices)

    def load_critic(self, tokenizer: PreTrainedTokenizerBase) -> Policy | None:
        """Return the value model that the algorithm wants, or None.

        Raises AlignError if it does not read the policy's tokens.
        """
        spec, model = self.algorithm.critic, self.stage.model
        if spec is None:
            return None
        if spec.path is not None:
            model = model.model_copy(update={"path": spec.path, "revision": None})
        critic, own = build_policy(model, "reward", seed=self.stage.seed, dropout=False)
        if own.get_vocab() != tokenizer.get_vocab():
            raise AlignError(
                "has another vocabulary than the policy, and a critic reads the policy's tokens",
                "take a reward model trained from the same base",
                where=f"critic {model.path}",
            )
        critic.head = "value"
        return critic

    def make_step_source(
        self,
        model: LoadedModel,
        data: Datasets,
        builder: DatasetBuilder,
        batcher: MicroBatcher,
        observers: Sequence[PhaseObserver],
    ) -> RolloutSteps:
        """Return the steps on completions that are sampled and scored when their phase begins."""
        assert isinstance(self.algorithm, Online)
        collector = self._collector(model, data, batcher)
        prompts = Prompts(data.train, data.rows)
        return RolloutSteps(prompts, collector, self.algorithm, batcher, self.stage, observers)

    def _collector(self, model: LoadedModel, data: Datasets, batcher: MicroBatcher) -> Collector:
        """Return what samples and scores; its generator and rewards are not open yet (``running``)."""
        stage, rollout = self.stage, self.stage.rollout
        assert rollout is not None
        generator: Generator = registry.build("generator", rollout.generator)
        place = RewardContext(
            rank=batcher.rank,
            world_size=batcher.world_size,
            seed=stage.seed,
            accelerator=self.hardware.accelerator,
            home=self.place.path,
        )
        prompts = [data.train, *(held_out.examples for held_out in data.held_out)]
        context = max(int(held.lengths.max()) for held in prompts) + rollout.sampling.max_completion_length
        for whose, network in (("model", model.policy), ("critic", model.critic)):
            if network is not None:
                limits = [limit for limit in limits_for(network, context) if limit is not None]
                _refuse_overlong(stage, prompts, min(limits, default=None), whose)
        return Collector(
            rollout,
            generator,
            model.handle(stage, context),
            Scorer(rollout.rewards, place),
            None if rollout.gold is None else Scorer([rollout.gold], place),
            model.critic,
            model.reference,
            batcher,
            stage.seed,
            forward=partial(autocast, self.hardware, stage.train.precision),
            stop=self.signals.requested,
        )

    def observers(self) -> Sequence[PhaseObserver]:
        """Return the log of samples, on the first process."""
        assert self.stage.rollout is not None
        if processes.rank() != 0:
            return ()
        return (SampleLog(self.directory.run, self.place, self.stage.rollout),)

    def hooks(self, ready: PreparedStage[RolloutSteps]) -> StageHooks:
        """Add the phase's metrics to each step's; score completions to held-out prompts in place of their loss."""
        steps = ready.steps
        held_out = [Prompts(held.examples, ready.data.rows) for held in ready.data.held_out]
        return replace(
            super().hooks(ready),
            phase_metrics=lambda: steps.metrics,
            evaluate_prompts=lambda index, step: steps.evaluate(held_out[index], step),
        )

    def callbacks(self, ready: PreparedStage[RolloutSteps]) -> list[Callback]:
        """Return the alarms on the phases' metrics."""
        from align.core.online.alarm_callback import AlarmCallback

        assert self.stage.rollout is not None
        return [AlarmCallback(self.stage.rollout.watch, ready.steps, self._note_alarms)]

    def _note_alarms(self, reported: Sequence[str]) -> None:
        self.directory.note(self.stage.name, alarms=list(reported))

    def held_out_loaders(self, ready: PreparedStage[RolloutSteps]) -> list[StepLoader]:
        """Return one empty step for each held-out set, in whose place its prompts are evaluated (``hooks``)."""
        return [StepLoader(lambda index: ready.batcher.step(index, []), 1) for _ in ready.data.held_out]

    @contextmanager
    def running(self, ready: PreparedStage[RolloutSteps]) -> Iterator[None]:
        """Run generator and rewards in the block, and close them whatever happens."""
        with generator_and_rewards(ready.steps.collector):
            try:
                yield
            finally:
                set_global_step(0)  # outside training

    def describe_first_step(self, ready: PreparedStage[RolloutSteps]) -> str:
        """Return the size of a phase: nothing is sampled to say more."""
        count = ready.steps.steps_per_phase
        return f"{self._phase_size(ready)}, learned from in {'1 step' if count == 1 else f'{count} steps'}"

    def _phase_size(self, ready: PreparedStage[RolloutSteps]) -> str:
        prompts, each = ready.steps.groups_per_phase, self.algorithm.num_generations
        return f"{prompts} prompts a phase, each answered {each} times"


def configure(algorithm: Algorithm, stage: Stage) -> None:
    """Give an algorithm that samples its rollout settings. Raises AlignError where the two do not go together."""
    if not isinstance(algorithm, Online):
        return
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


def refuse_staleness(stage: Stage, algorithm: Algorithm, generator: Generator) -> None:
    """Raise AlignError where ``rollout.max_staleness: 1`` cannot work, or nothing corrects for stale answers."""
    rollout = stage.rollout
    assert rollout is not None
    if not rollout.max_staleness:
        return
    where = f"{stage.name}: rollout.max_staleness"
    if algorithm.makes_rows:
        raise AlignError(f"is 1, and {algorithm.name} learns nothing while it could sample", "use 0", where=where)
    if not generator.generates_in_background:
        why = "has the trainer's own weights, which change under it" if generator.shares_weights else "takes its turns"
        raise AlignError(
            f"is 1, and the generator {generator.name} {why} in the trainer's process",
            "use {type: vllm, mode: server}, or 0",
            where=where,
        )
    corrected = rollout.importance_sampling_correction.type != "none"
    if isinstance(algorithm, Online) and algorithm.uses_ratio and not corrected:
        raise AlignError(
            "is 1: answers come from older weights than those that learn from them, and nothing corrects for it",
            "set importance_sampling_correction: {type: truncate}",
            where=where,
        )


def refuse_unusable_rows(rows: Iterable[Record], choices: Sequence[RewardChoice]) -> None:
    """Raise AlignError for rows that a reward could never score."""
    problems = []
    rewards = [(choice.type, reward_of(choice)) for choice in choices]
    for name, reward in rewards:
        found = [(row.source, why) for row in rows if (why := reward.unfit(row.columns))]
        if found:
            more = f" (and {len(found) - MAX_NAMED_ROWS} rows more)" if len(found) > MAX_NAMED_ROWS else ""
            fix = f"reward {name} cannot score it{more}: fix the rows, or leave them out"
            problems += [Problem(source, why, fix) for source, why in found[:MAX_NAMED_ROWS]]
    if problems:
        raise AlignError.gather(problems)


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
        more = f" (and {len(none_fits) - MAX_NAMED_ROWS} rows more)" if len(none_fits) > MAX_NAMED_ROWS else ""
        raise AlignError.gather(
            Problem(source, f"has {length} tokens, and the {whose} {limit} positions: no answer fits", fix + more)
            for length, source in none_fits[:MAX_NAMED_ROWS]
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
def generator_and_rewards(collector: Collector) -> Iterator[None]:
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
        collector.close()
        collector.generator.close()
        collector.scorer.close()
        if collector.gold is not None:
            collector.gold.close()
