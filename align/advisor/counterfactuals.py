"""Settings that could flip an answer: reasons for an option, removal of the present reasons, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.advisor.data_budget import floor_of
from align.advisor.decision import Decision
from align.advisor.fact_settings import in_words, joined
from align.advisor.form_fields import value_at
from align.advisor.predicates import DATA_OF, ONLINE, skill
from align.advisor.project_facts import Facts
from align.advisor.thresholds import Thresholds
from align.schemas.project import DataKind

NEUTRAL: dict[str, str] = {
    "knowledge.changes": "never",
    "knowledge.needs_citations": "false",
    "knowledge.per_user": "false",
    "knowledge.unseen_domain": "false",
    "knowledge.source": "none",
    "knowledge.pretraining_done": "false",
    "behaviour.style_or_persona": "false",
    "behaviour.target_capability": "null",
    "behaviour.output_format": "none",
    "behaviour.prompt_falls_short": "false",
    "task.type": "null",
    "reward.kind": "none",
    "requested": "null",
    "constraints.weights_frozen": "false",
}
"""The value at which a field supports no option."""


def describe(settings: Sequence[str], facts: Facts) -> str:
    """Put settings into a sentence: ``it is advised if 25 rules must hold at once``."""
    kinds = {f"data.{i}": body.kind for i, body in enumerate(facts.project.data or ())}
    return "it is advised if " + joined(in_words(settings, kinds))


def reasons_for(option: str, facts: Facts, limit: Thresholds) -> list[list[str]]:
    """Return settings that support an option, the most likely ones first."""
    e = facts.project.evals
    if option == "prompting":
        reached = [[f"evals.baseline={e.target:g}"]] if e.target is not None else []
        return [[f"behaviour.rules_count={limit.few_rules}"], *reached, ["behaviour.output_format=fixed"]]
    if option == "rag":
        return [["knowledge.needs_citations=true"], ["knowledge.changes=daily"]]
    if option == "continual_pretraining":
        corpus = _body(facts, "corpus", "tokens", limit.corpus_tokens.warn)
        return [[*corpus, "knowledge.unseen_domain=true"]]
    if option == "post_training":
        pairs = _body(facts, "sft_pairs", "rows", limit.sft_rows.comfortable)
        skilled = [] if skill(facts) else ["behaviour.target_capability=instruction_following"]
        return [[f"behaviour.rules_count={limit.many_rules}"], pairs, [*pairs, *skilled]]
    return [_for_algorithm(option, facts, limit)]


def _for_algorithm(name: str, facts: Facts, limit: Thresholds) -> list[str]:
    settings = _body(facts, DATA_OF[name], "rows", floor_of(name, limit).comfortable)
    if name in ONLINE and facts.project.reward.kind not in ("verifier", "reward_model"):
        settings.append(f"reward.kind={'verifier' if name == 'grpo' else 'reward_model'}")
    if name == "best_of_n" and facts.project.reward.kind in (None, "none", "human"):
        settings.append("reward.kind=reward_model")
    if name in ("sft", "dpo", "kto") and not skill(facts):
        settings.append("behaviour.target_capability=instruction_following")
    asked_for = name in ("rloo", "ppo", "reward_model", "best_of_n", "grpo")
    return [*settings, *([f"requested={name}"] if asked_for else [])]


def _body(facts: Facts, kind: DataKind, unit: str, amount: int) -> list[str]:
    """Return settings for enough data of a kind: a larger existing data set, or a new one."""
    held = facts.project.data or []
    at = next((i for i, d in enumerate(held) if d.kind == kind), len(held))
    new = [f"data.{at}.kind={kind}"] if at == len(held) else []
    have = getattr(held[at].size, unit) if at < len(held) else None
    return new if have is not None and have >= amount else [*new, f"data.{at}.size.{unit}={amount}"]


def neutral(facts: Facts, limit: Thresholds, decision: Decision, option: str) -> list[str]:
    """Return settings that remove the votes for the present answer and the vetoes against ``option``."""
    in_the_way = [f for f in decision.votes if (f.option != option) != (f.weight == "veto" and f.option == option)]
    settings: dict[str, Any] = {}
    for name in dict.fromkeys(name for f in in_the_way for name in f.fields):
        if name in NEUTRAL and _held(facts, name):
            settings[name] = NEUTRAL[name]
        elif name == "behaviour.rules_count" and facts.project.behaviour.rules_count:
            settings[name] = limit.few_rules
        elif name.startswith("data.") and name.count(".") == 1 and name.split(".")[1] in facts.kinds:
            settings.update(_emptied(facts, name.split(".")[1]))
    e = facts.project.evals
    if option == "post_training" and e.target is not None and e.baseline is not None and e.baseline >= e.target:
        settings["evals.baseline"] = f"{e.target / 2:g}"
    return [f"{path}={value}" for path, value in settings.items()]


def _emptied(facts: Facts, kind: str) -> dict[str, Any]:
    """Return settings that leave no rows, tokens or documents in any data set of a kind."""
    bodies = [(i, d) for i, d in enumerate(facts.project.data or ()) if d.kind == kind]
    unit = {"corpus": "tokens", "documents": "docs"}.get(kind, "rows")
    return {f"data.{i}.size.{unit}": 0 for i, _ in bodies}


def _held(facts: Facts, name: str) -> bool:
    return value_at(facts.project, name) not in (None, False, "none", "never")
