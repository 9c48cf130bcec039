"""The decision: the rules' answer, and its stages in order, chosen by the data on hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from align.advisor.data_budget import budget_of, denied, first_use, format_count
from align.advisor.predicates import AUTOMATIC, DATA_OF, ONLINE, asked, requested_by_user, scorer, wants_scorer
from align.advisor.project_facts import Facts, Plan
from align.advisor.rule import Rule, Vote
from align.advisor.select import Selection, choose, run_rules
from align.advisor.thresholds import Thresholds
from align.schemas.advice import PlanStep, Primary
from align.schemas.project import DataKind


def plan(facts: Facts, limit: Thresholds, choice: Selection, votes: Sequence[Vote]) -> Plan:
    """Return the stages of an answer, in order, and the companions of its primary option."""
    if choice.option == "insufficient":
        return Plan("insufficient")
    draft = _StageBuilder(facts, limit, votes)
    for option in choice.options:
        draft.add(option)
    companions = tuple(dict.fromkeys("post_training" if o == "best_of_n" else o for o in choice.others))
    return Plan(choice.primary, tuple(draft.steps), tuple(c for c in companions if c != choice.primary))


@dataclass
class _StageBuilder:
    """The stages of a plan, while they are collected."""

    facts: Facts
    limit: Thresholds
    votes: Sequence[Vote]
    steps: list[PlanStep] = field(default_factory=list)

    def add(self, option: str) -> None:
        """Add the stages of one option."""
        if option == "post_training":
            self._train()
        elif option == "best_of_n":
            self._sample(learn=self._usable("prompts") and not self.facts.project.constraints.weights_frozen)
        elif option == "continual_pretraining":
            self._step(option, self._why(option), self._lacking("continual_pretraining"))
        else:
            self._step(option, self._why(option))

    def _why(self, *options: str) -> list[str]:
        found = [f.rule for f in self.votes if f.option in options and f.weight != "veto"]
        return found or ["CODESIGN"]

    def _step(self, stage: str, why: list[str], needs: str = "", optional: bool = False) -> None:
        self.steps.append(PlanStep(stage=stage, why=why, needs=needs, optional=optional))

    def _lacking(self, stage: str) -> str:
        """Return the data that a stage still needs, in words; empty where there are enough."""
        kind = DATA_OF[stage]
        found = budget_of(self.facts.data(kind), stage, self.limit)
        if kind in self.facts.kinds and not found.thin:
            return ""
        wanted, name = format_count(found.floor.warn), kind.replace("_", " ")
        if found.given is not None and not found.hopeless:
            return f"more {name}: {format_count(found.given)} {found.unit} are few, {wanted} are wanted"
        return f"at least {wanted} {found.unit} of {name}"

    def _usable(self, kind: DataKind) -> bool:
        """Return whether data of a kind exist or are planned, and are enough to learn anything from."""
        held = self.facts.coming(kind)
        return held is not None and not budget_of(held, first_use(kind), self.limit).hopeless

    def _train(self) -> None:
        why = self._why("post_training")
        scoring = wants_scorer(self.facts) and not self._learns_from_it() and not self._usable("prompts")
        if self.facts.project.constraints.weights_frozen:
            # A separate scorer is all that may be trained.
            self._step("reward_model", why, self._lacking("reward_model"))
            self._step("best_of_n", why, "a use for its scores while answering", optional=True)
            return
        after_cpt = any(step.stage == "continual_pretraining" for step in self.steps)
        raw = self.facts.project.model.type == "base" or after_cpt
        if not scoring and (self._usable("sft_pairs") or raw or not self._learns_otherwise()):
            needs = self._demonstrations() if not self._usable("sft_pairs") else self._lacking("sft")
            self._step("sft", ["CODESIGN", *why] if raw else why, needs)
        if self._usable("preference_pairs"):
            self._preferences(why)
        if self._usable("unpaired_feedback"):
            self._step("kto", why, self._lacking("kto"))
        self._rewards(why)

    def _learns_otherwise(self) -> bool:
        judged = self._usable("preference_pairs") or self._usable("unpaired_feedback")
        return judged or (scorer(self.facts) in AUTOMATIC and not denied(self.facts, "prompts"))

    def _demonstrations(self) -> str:
        if self._usable("preference_pairs"):
            return "the better answers of the pairs as examples"
        return f"at least {self.limit.sft_rows.warn:,} examples of the answer wanted"

    def _preferences(self, why: list[str]) -> None:
        """Add dpo on preference pairs, or a reward model where rewards are wanted and there are prompts.

        Nothing is added where rewards are wanted and a scorer exists: the pairs are what it was trained on.
        """
        wanted = wants_scorer(self.facts)
        rewards = asked(self.facts, "rlhf", *ONLINE) and requested_by_user(self.facts)
        if rewards and scorer(self.facts) in AUTOMATIC:
            return
        if wanted or (rewards and self._usable("prompts")):
            self._step("reward_model", why, self._lacking("reward_model"))
            if self._usable("prompts") or self._learns_from_it():
                self._step(self._online("ppo"), why, self._lacking("ppo"))
        else:
            self._step("dpo", why, self._lacking("dpo"))

    def _learns_from_it(self) -> bool:
        """Return whether a scorer is wanted for the sake of learning from it: both are named."""
        return any(e.value in ("rlhf", *ONLINE) for e in self.facts.all("requested", "asserted", "planned"))

    def _rewards(self, why: list[str]) -> None:
        """Add online RL, or best-of-n sampling, where there are prompts and an automatic score."""
        kind, p = scorer(self.facts), self.facts.project
        if kind not in AUTOMATIC or any(s.stage in ("reward_model", "best_of_n", *ONLINE) for s in self.steps):
            return
        online = self._online("grpo" if kind == "verifier" else "rloo")
        taught = any(step.stage in ("sft", "dpo", "kto") for step in self.steps)
        few = budget_of(self.facts.coming("prompts"), online, self.limit).thin
        if not self._usable("prompts"):
            if not taught:
                self._step(online, why, self._lacking(online))
            elif kind == "verifier" and self._usable("sft_pairs"):  # their questions are prompts
                self._step(online, why, "the questions of the examples, where sft falls short", optional=True)
        elif asked(self.facts, "best_of_n") or (p.constraints.max_n or 0) > 1 or (few and kind == "reward_model"):
            self._sample(learn=True)
        else:
            self._step(online, why, self._lacking(online))

    def _online(self, default: str) -> str:
        named = [e.value for e in self.facts.all("requested", "asserted", "planned") if e.value in ONLINE]
        wanted = self.facts.project.requested
        return wanted if wanted in ONLINE else named[0] if named else default

    def _sample(self, learn: bool) -> None:
        """Add best-of-n sampling; with ``learn`` also sft on the best answers, which is rejection sampling."""
        for stage in ("best_of_n", "sft") if learn else ("best_of_n",):
            self._step(stage, self._why("best_of_n", "post_training"))


@dataclass(frozen=True, slots=True)
class Decision:
    """The votes of the rules, the answer they add up to, and its stages. failed: rules that raised, in words."""

    choice: Selection
    plan: Plan
    votes: tuple[Vote, ...]
    failed: tuple[str, ...] = ()


def decide(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule]) -> Decision:
    """Return the answer and its stages alone, without estimates and alternatives."""
    outcomes = run_rules(facts, limit, rules)
    choice = choose(facts, outcomes.votes)
    return Decision(choice, plan(facts, limit, choice, outcomes.votes), outcomes.votes, outcomes.failed)


class Conclusion(NamedTuple):
    """The conclusion of the rules from facts: the decision, and the ids of its warnings."""

    decision: Decision
    warnings: frozenset[str]

    @property
    def primary(self) -> Primary:
        """The answer."""
        return self.decision.plan.primary


def conclude(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule]) -> Conclusion:
    """Return the answer, its stages and its warnings, those of memory aside: nothing is estimated."""
    decision = decide(facts, limit, rules)
    found = run_rules(replace(facts, plan=decision.plan), limit, rules).warnings
    return Conclusion(decision, frozenset(warning.id for warning in found))
