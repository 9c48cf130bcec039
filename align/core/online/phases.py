"""Online phases: sample, score, compute advantages, then take optimizer steps as offline; a phase is one epoch.

What cannot be computed again from the settings is the phase's answers (the weights that sampled them are gone), what
algorithm and rewards carry from phase to phase, and how many prompts were asked: that is the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from align.core.algorithm import contract, importance_weights
from align.core.algorithm.online import Experience, Group, Online
from align.core.data import step_plan
from align.core.data.examples import Example, TokenSequence
from align.core.engine.steps import MicroBatcher, StepBatch, StepLoader
from align.core.generation.base import Interrupt
from align.core.online.collect import Collector, Failed, PromptGroup, Prompts
from align.core.online.monitor import answer_metrics, group_metrics, level, score_metrics, zero_variance
from align.core.rewards.functions import set_global_step
from align.core.rewards.scorer import Scored
from align.schemas.errors import AlignError
from align.schemas.run import Sampling, Stage

# Examples as plain values and tensors: what a checkpoint may hold, so that loading one runs no code.


def plain(example: Example) -> dict[str, Any]:
    """An example as plain values and tensors, which a checkpoint may hold."""
    sequences = [
        {
            "role": s.role,
            "tokens": torch.from_numpy(np.array(s.tokens)),
            "scored": torch.from_numpy(np.array(s.scored)),
            "ref_logp": None if s.ref_logp is None else torch.from_numpy(np.array(s.ref_logp)),
            "token_data": {name: torch.from_numpy(np.array(values)) for name, values in s.token_data.items()},
        }
        for s in example.sequences
    ]
    return {"source": example.source, "columns": dict(example.columns), "sequences": sequences}


def from_plain(kept: Mapping[str, Any]) -> Example:
    """Return the example that ``plain`` took apart."""
    sequences = tuple(
        TokenSequence(
            s["role"],
            s["tokens"].numpy(),
            s["scored"].numpy(),
            None if s["ref_logp"] is None else s["ref_logp"].numpy(),
            {name: values.numpy() for name, values in s["token_data"].items()},
        )
        for s in kept["sequences"]
    )
    return Example(kept["source"], sequences, kept["columns"])


PhaseObserver = Callable[[int, Sequence[PromptGroup], Sequence[Scored]], None]
"""A function called with the number of a phase, its prompts with their completions, and the scores in that order."""

REFILL = 3
"""Tokens that a phase with replacements may take in all, as a multiple of the first round's."""


class RolloutSteps:
    """Phases of ``batches`` * ``num_iterations`` optimizer steps over the same answers; at most ``total_steps`` in all.

    Where the stage ends after a number of epochs its last phase has the prompts that are left, and as many steps as
    their answers fill.

    observers: called with every phase's completions and scores, before the first step on them (samples, notices).
    """

    def __init__(
        self,
        prompts: Prompts,
        collector: Collector,
        algorithm: Online,
        batcher: MicroBatcher,
        stage: Stage,
        observers: Sequence[PhaseObserver] = (),
    ) -> None:
        assert stage.rollout is not None
        self.prompts, self.collector, self.algorithm, self.batcher = prompts, collector, algorithm, batcher
        self.observers = observers
        self.rollout, self.seed, self.stage = stage.rollout, stage.seed, stage.name
        self.groups_per_phase = groups_per_phase(stage, algorithm)
        self.steps_per_phase = self.rollout.batches * algorithm.num_iterations
        self.steps_per_rollout: int | None = self.steps_per_phase
        self.evaluate_every: int | None = -(-len(prompts) // self.groups_per_phase) * self.steps_per_phase
        self._wanted, self.total_steps = extent(stage, algorithm, len(prompts))
        self.metrics: Mapping[str, float] = {}
        self.unscored = ""
        """Why the phase's first answer without a score has none."""
        self._place = 0  # prompts asked so far
        self._phase = -1
        self._epoch = -1
        self._examples: list[list[Example]] | None = None  # of each group, while the phase has steps left

    # --- steps -----------------------------------------------------------------------------------------------------

    def loader(self, phase: int, start: int) -> StepLoader:
        """Return the steps of one phase, whose completions are sampled when the first of them is fetched."""
        before = phase * self.steps_per_phase

        def build(index: int) -> StepBatch:
            if self._phase != phase or self._examples is None:
                carried = self.state_dict()
                try:
                    self._collect(phase)
                except (Interrupt, Failed):  # the phase will be collected again, from what it began with
                    self.load_state_dict(carried)
                    raise
            assert self._examples is not None
            self.metrics = {**self.metrics, "rollout/staleness": float(index)}
            batches = self._batches(phase)
            turn, batch = divmod(index, batches)
            order = self._order(len(self._examples), phase * self.algorithm.num_iterations + turn)
            chosen = np.array_split(order, batches)[batch]
            step = self.batcher.step(index, [example for group in chosen for example in self._examples[group]])
            if index == batches * self.algorithm.num_iterations - 1:
                self._examples = None  # a checkpoint after the phase need not hold it
            return step

        return StepLoader(build, min(self.steps_per_phase, self.total_steps - before), start)

    def _order(self, groups: int, epoch: int) -> NDArray[Any]:
        batches = (
            step_plan.epoch_order(np.zeros(groups, np.int32), (1.0,), self.seed, epoch, max(1, groups))
            if groups
            else []
        )
        return batches[0] if batches else np.zeros(0, np.int64)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """Return (phase, step within it)."""
        return divmod(steps_done, self.steps_per_phase)

    def epochs(self, steps_done: int) -> float:
        """Return the passes over the prompts; replacements of groups without variance are not counted."""
        phase, within = self.locate(steps_done)
        part = within / (self._batches(phase) * self.algorithm.num_iterations) if within else 0.0
        asked = phase * self.groups_per_phase + part * self._groups(phase)
        return (asked if self._wanted is None else min(asked, self._wanted)) / len(self.prompts)

    def _groups(self, phase: int) -> int:
        """Return the number of a phase's prompts: in the last one those that are left."""
        left = self.groups_per_phase if self._wanted is None else self._wanted - phase * self.groups_per_phase
        return max(1, min(self.groups_per_phase, left))

    def _batches(self, phase: int) -> int:
        """Return how many steps one pass over a phase's answers takes: its share of a full phase's, rounded up."""
        return -(-self._groups(phase) * self.rollout.batches // self.groups_per_phase)

    # --- one phase -------------------------------------------------------------------------------------------------

    def _collect(self, phase: int) -> None:
        """Sample and score a phase's completions, measure their log-probabilities, and compute advantages."""
        set_global_step(phase * self.steps_per_phase)
        self.collector.sync(phase * self.steps_per_phase, self.prompts)
        asked, scored, groups = self._ask(self._groups(phase))
        alive = [not zero_variance(group) for group in groups]
        for group, lives in zip(groups, alive, strict=True):
            if not lives:
                level(group)
        metrics = answer_metrics(
            [len(e.tokens) for group in groups for e in group], [e.finish == "length" for g in groups for e in g]
        )
        golds = [heard.gold for each in asked for heard in each.answers]
        metrics |= score_metrics(scored, golds, self.algorithm.num_generations)
        metrics |= group_metrics(groups)
        metrics |= {"rollout/prompts": float(len(groups)), "rollout/zero_std_groups": float(len(groups) - sum(alive))}
        learned = groups
        if self.rollout.zero_std_groups != "keep":
            learned = [group for group, lives in zip(groups, alive, strict=True) if lives]
        correction = self.rollout.importance_sampling_correction
        ratio = correction.type != "none" or not self.collector.generator.shares_weights
        several = self.steps_per_phase > 1
        self.collector.measure(learned, several or ratio or self.algorithm.measures_logp)
        weights = None
        flat = [experience for group in learned for experience in group]
        if ratio and flat:
            weights, found = importance_weights.weights(flat, correction)
            metrics |= found
        # Check the measurements before ``compute_advantages`` uses them: a model that gives NaN is no fault of the
        # algorithm's.
        measured = [name for name in ("logp", "ref_logp", "value") if flat and getattr(flat[0], name) is not None]
        _finite(flat, {name: [getattr(experience, name) for experience in flat] for name in measured})
        advantages = contract.compute_advantages(self.algorithm, learned)
        token_data = dict(advantages.token_data)
        if several or weights is not None:
            token_data["old_logp"] = [_measured(experience) for experience in flat]
        if weights is not None:
            token_data["weight"] = weights
        advantages = type(advantages)(token_data, advantages.keep, advantages.metrics)
        _finite(flat, advantages.token_data)  # again, for the advantages and the importance weights
        metrics |= {"rollout/masked": float(np.mean(~advantages.keep)) if len(advantages.keep) else 0.0}
        metrics |= {name: float(value) for name, value in advantages.metrics.items()}
        if self.collector.gap is not None:
            metrics["sampling/sync_gap"] = self.collector.gap
        self._examples = contract.examples(self.algorithm, learned, advantages)
        self._phase, self.metrics, self.unscored = phase, metrics, why_unscored(scored)
        for observe in self.observers:
            observe(phase, asked, scored)

    def _ask(self, full: int) -> tuple[list[PromptGroup], list[Scored], list[Group]]:
        """Return the ``full`` groups of a phase; ``refill`` replaces those of equal rewards within the token budget."""
        asked, scored, groups = list[PromptGroup](), list[Scored](), list[Group]()
        spent, budget, wanted = 0, 0, full
        while wanted > 0:
            places = range(self._place, self._place + wanted)
            which = [self._prompt(place) for place in places]
            new = self.collector.ask(self.prompts, which, places, self.algorithm.num_generations, self.rollout.sampling)
            self._place += wanted
            sums = self.collector.scorer.combine([heard.said for each in new for heard in each.answers])
            made = experiences(new, sums)
            asked, scored, groups = asked + new, scored + sums, groups + made
            if self.rollout.zero_std_groups != "refill":
                break
            spent += sum(len(heard.tokens) for each in new for heard in each.answers)
            budget = budget or self.rollout.refill_tokens or REFILL * spent
            wanted = full - sum(not zero_variance(group) for group in groups)
            if spent >= budget:
                break
        return asked, scored, groups

    def _prompt(self, place: int) -> int:
        """Return the index of the prompt at a place of the run: every epoch has its own order."""
        epoch, at = divmod(place, len(self.prompts))
        if epoch != self._epoch:
            examples = self.prompts.examples
            drawn = step_plan.epoch_order(examples.sources, examples.weights, self.seed, epoch, len(examples))
            self._epoch, self._drawn = epoch, np.concatenate(drawn)
        return int(self._drawn[at % len(self._drawn)])

    # --- held-out prompts ------------------------------------------------------------------------------------------

    def evaluate(self, held_out: Prompts, version: int) -> dict[str, float]:
        """Return the metrics of the greedy completions to held-out prompts."""
        self.collector.sync(version, held_out)
        greedy = Sampling(**self.rollout.sampling.model_dump() | {"temperature": 0.0})
        everything = range(len(held_out))
        # Not interruptible: it is always finished, so that the log stays exact.
        asked = self.collector.ask(held_out, everything, everything, 1, greedy, interruptible=False)
        heard = [each.answers[0] for each in asked]
        scored = self.collector.scorer.combine([h.said for h in heard], moves=False)
        lengths = answer_metrics([len(h.tokens) for h in heard], [h.finish == "length" for h in heard])
        return score_metrics(scored, [h.gold for h in heard]) | lengths

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the phase's answers while it has steps left, and what is carried from phase to phase."""
        with contract.calling(self.algorithm, "state_dict"):
            carried = self.algorithm.state_dict()
        return {
            "place": self._place,
            "phase": self._phase,
            "metrics": dict(self.metrics),
            "examples": None if self._examples is None else [[plain(e) for e in group] for group in self._examples],
            "algorithm": carried,
            "scorer": self.collector.scorer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, before the first ``loader``."""
        self._place, self._phase, self.metrics = state["place"], state["phase"], state["metrics"]
        groups = state["examples"]
        self._examples = None if groups is None else [[from_plain(kept) for kept in group] for group in groups]
        with contract.calling(self.algorithm, "load_state_dict"):
            self.algorithm.load_state_dict(state["algorithm"])
        self.collector.scorer.load_state_dict(state["scorer"])


def groups_per_phase(stage: Stage, algorithm: Online) -> int:
    """Return the number of prompts in a phase. Raises AlignError where groups do not fill optimizer steps."""
    assert stage.rollout is not None
    each = algorithm.num_generations
    if stage.train.batch_size % each:
        raise AlignError(
            f"is {stage.train.batch_size} answers, which {algorithm.name}'s groups of {each} do not fill",
            f"take a multiple of {each}",
            where=f"{stage.name}: train.batch_size",
        )
    if stage.rollout.zero_std_groups != "keep" and algorithm.num_generations == 1:
        raise AlignError(
            f"is {stage.rollout.zero_std_groups}, but {algorithm.name} asks each prompt once",
            "use keep, or larger groups",
            where=f"{stage.name}: rollout.zero_std_groups",
        )
    return stage.train.batch_size * stage.rollout.batches // algorithm.num_generations


def extent(stage: Stage, algorithm: Online, prompts: int) -> tuple[int | None, int]:
    """Return how many prompts a stage has in all, None where ``max_steps`` ends it, and its number of optimizer steps.

    An epoch has each prompt exactly once (``zero_std_groups: refill`` has further ones), so the last phase may be
    short.
    """
    assert stage.rollout is not None
    if stage.train.max_steps:
        return None, stage.train.max_steps
    full = groups_per_phase(stage, algorithm)
    wanted = max(1, round(stage.train.num_train_epochs * prompts))
    phases, left = divmod(wanted, full)
    last = -(-left * stage.rollout.batches // full)  # rounded up: a short last batch is still a step
    batches = phases * stage.rollout.batches + last
    return wanted, batches * algorithm.num_iterations


def experiences(asked: Sequence[PromptGroup], scored: Sequence[Scored]) -> list[Group]:
    """Return sampled completions as algorithms see them; ``scored`` has all groups' answers one after the other."""
    rewards = iter(scored)
    groups: list[Group] = []
    for each in asked:
        group = []
        for heard in each.answers:
            score = next(rewards)
            experience = Experience(each.source, each.prompt, heard.tokens, heard.finish, heard.logp)
            experience.reward, experience.parts, experience.size = score.learned, score.parts, score.size
            group.append(experience)
        groups.append(group)
    return groups


def why_unscored(scored: Sequence[Scored]) -> str:
    """Return the first explanation that a reward gave for an answer without a score; "" where none did."""
    for each in scored:
        if each.reward is None:
            for name, score in each.scores.items():
                if score.why:
                    return f"{name}: {score.why}"
    return ""


def _measured(experience: Experience) -> NDArray[np.float32]:
    assert experience.logp is not None
    return experience.logp


def _finite(flat: Sequence[Experience], token_data: Mapping[str, Sequence[NDArray[np.float32]]]) -> None:
    """Raise AlignError where something that would be learned from is not a number."""
    for name, arrays in token_data.items():
        for experience, values in zip(flat, arrays, strict=True):
            if not np.isfinite(values).all():
                raise AlignError(
                    f"an answer to it has a {name} that is not finite",
                    "see the phase's samples; a model that gives NaN needs a lower learning rate or max_grad_norm",
                    where=experience.source,
                )
