"""Predicates of facts that rules share: the method requested, the scorer, methods tried. Pure functions."""

from __future__ import annotations

from align.advisor.project_facts import Facts
from align.advisor.thresholds import Thresholds
from align.schemas.project import DataKind, Method

ONLINE = ("grpo", "rloo", "ppo")
"""Algorithms that learn from rewards."""
SAMPLING = (*ONLINE, "best_of_n")
"""Stages that sample their answers to prompts, and have them scored."""
ALGORITHM = {"continual_pretraining": "pretrain"}
"""The run file's name of a stage's algorithm, where the plan has another."""
METHOD: dict[str, Method] = {
    "pretrain": "continual_pretraining",
    **dict.fromkeys(("dpo", "simpo", "orpo", "cpo"), "dpo"),
    **dict.fromkeys(("reinforce", "online_dpo"), "rlhf"),
}
"""The name of an algorithm in a form, where it is not by its own name."""
TRAINING = ("post_training", "sft", "dpo", "kto", "reward_model", "rlhf", *ONLINE)
"""Methods that fit weights to behaviour."""
TRAINED_ON: tuple[DataKind, ...] = ("sft_pairs", "preference_pairs", "unpaired_feedback", "prompts")
"""Kinds of data that post-training learns from."""
JUDGED: tuple[DataKind, ...] = ("preference_pairs", "unpaired_feedback")
"""Kinds of data that hold judgements of completions."""

FITS_WEIGHTS = ("continual_pretraining", "sft", "dpo", "kto", "reward_model", *ONLINE)
"""Stages that change a model's weights."""
CHANGING = ("monthly", "weekly", "daily", "realtime")
"""Values of ``knowledge.changes`` that weights cannot follow."""
DATA_OF: dict[str, DataKind] = {
    "continual_pretraining": "corpus",
    "sft": "sft_pairs",
    "dpo": "preference_pairs",
    "kto": "unpaired_feedback",
    "reward_model": "preference_pairs",
    "best_of_n": "prompts",
    "grpo": "prompts",
    "rloo": "prompts",
    "ppo": "prompts",
}
"""The kind of data that each stage learns from."""

SKILLS = frozenset(
    {"sql", "code", "function_calling", "reasoning", "math", "extraction", "classification", "translation"}
)
"""Tasks that are a capability by themselves: there is a right answer."""
AUTOMATIC = ("verifier", "reward_model", "llm_judge")
"""Scorers that can score thousands of answers."""
PROGRAMS = ("verifier", "reward_model")
"""Scorers whose score means the same each time."""
SCORERS = (*AUTOMATIC, "human")
"""Kinds of reward that can score a completion."""


def scorer(facts: Facts) -> str | None:
    """Return the kind of scorer of answers, or None where there is none or nothing is known."""
    kind = facts.project.reward.kind
    return kind if kind in SCORERS else None


def skill(facts: Facts) -> str | None:
    """Return the capability to be improved: named, or a task that is one; None without."""
    task = facts.project.task.type
    return facts.project.behaviour.target_capability or (task if task in SKILLS else None)


def purpose(facts: Facts) -> bool:
    """Return whether there is a skill, a style or a specific task to improve; conversation alone does not count."""
    p = facts.project
    named = p.task.type not in (None, "other", "chat", "qa", "domain_model")
    return bool(skill(facts) or p.behaviour.style_or_persona or named)


def gap(facts: Facts) -> float | None:
    """Return target minus baseline, in the metric's own unit; None where either is unknown."""
    baseline, target = facts.project.evals.baseline, facts.project.evals.target
    return None if baseline is None or target is None else target - baseline


SHORTFALL = ("evals.baseline", "evals.target", "behaviour.prompt_falls_short")
"""The fields that ``falls_short`` and ``shortfall`` rest on."""


def falls_short(facts: Facts, limit: Thresholds) -> bool:
    """Return whether a prompt was seen to fall short: stated so, or measured below the target.

    A baseline without a target falls short where it leaves more than ``limit.near_target`` to gain, unless the facts
    state that a prompt does.
    """
    stated, missing = facts.project.behaviour.prompt_falls_short, gap(facts)
    if stated is not None or missing is not None:
        return bool(stated) or (missing is not None and missing > 0)
    baseline = facts.project.evals.baseline
    return baseline is not None and baseline < 1 - limit.near_target


def untried(facts: Facts, limit: Thresholds) -> bool:
    """Return whether the facts state that no prompt was seen to fall short: none was tried, or it does."""
    return facts.project.behaviour.prompt_falls_short is False and not falls_short(facts, limit)


def shortfall(facts: Facts) -> str:
    """Return what is known of the best prompt, as a clause: ``the best prompt reaches 60% and 95% is wanted``."""
    baseline, target = facts.project.evals.baseline, facts.project.evals.target
    if baseline is None:
        return "a good prompt was seen to fall short"
    reached = f"the best prompt reaches {format_score(baseline)}"
    return reached if target is None else f"{reached} and {format_score(target)} is wanted"


def format_score(score: float) -> str:
    """Format a metric: shares of 0 to 1 in percent, others as they are."""
    return f"{100 * score:.4g}%" if 0 <= score <= 1 else f"{score:.4g}"


def tried(facts: Facts, *methods: str) -> bool:
    """Return whether one of these has been tried; without a name, whether anything has."""
    return any(not methods or t in methods for t in facts.project.tried or ())


def asked(facts: Facts, *methods: str) -> bool:
    """Return whether one of these methods is requested, by the user or by others that the user mentions."""
    return facts.project.requested in methods


def requested_by_user(facts: Facts) -> bool:
    """Return whether the user requests the method, not only others that the user mentions."""
    return any(e.status in ("asserted", "planned") for e in facts.all("requested"))


def wants_scorer(facts: Facts) -> bool:
    """Return whether a reward model is to be trained, and there are comparisons for it.

    It is requested or planned, or is the only use of comparisons because the model's weights are frozen.
    """
    planned = any(e.value == "reward_model" for e in facts.all("reward.kind", "planned"))
    left = facts.project.constraints.weights_frozen and scorer(facts) is None
    return bool(asked(facts, "reward_model") or planned or left) and facts.coming("preference_pairs") is not None


def wants_behaviour(facts: Facts) -> bool:
    """Return whether the wanted behaviour is known: rules, a format, a style, a skill, or judged answers."""
    b = facts.project.behaviour
    formed = b.output_format in ("fixed", "strict_schema")
    judged = any(kind in facts.kinds for kind in JUDGED)
    return bool(b.rules_count or b.style_or_persona or skill(facts) or formed or judged)


def has_goal(facts: Facts) -> bool:
    """Return whether the goal is known: the behaviour, the knowledge, or the task of the model afterwards."""
    p = facts.project
    knowledge = p.knowledge.needs_citations or p.knowledge.unseen_domain or p.knowledge.source == "proprietary"
    fresh = p.knowledge.changes not in (None, "never", "yearly")
    return bool(wants_behaviour(facts) or knowledge or fresh or purpose(facts) or p.task.description)
