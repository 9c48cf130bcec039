"""What rules ask of facts: sizes in one unit, what is wished for, what was measured. Pure functions, no judgement."""

from __future__ import annotations

from align.advisor.facts import Facts
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.project import DataKind, DataSet

ONLINE = ("grpo", "rloo", "ppo")
"""Algorithms that learn from rewards."""
TRAINING = ("post_training", "sft", "dpo", "kto", "reward_model", "rlhf", *ONLINE)
"""Methods that fit weights to behaviour."""
TRAINED_ON: tuple[DataKind, ...] = ("sft_pairs", "preference_pairs", "unpaired_feedback", "prompts")
JUDGED: tuple[DataKind, ...] = ("preference_pairs", "unpaired_feedback")

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
"""What each stage learns from."""

SKILLS = frozenset(
    {"sql", "code", "function_calling", "reasoning", "math", "extraction", "classification", "translation"}
)
"""Tasks that are a capability by themselves: there is a right answer."""
SCORERS = ("verifier", "reward_model", "llm_judge", "human")


def floor_of(stage: str, limit: Thresholds) -> Floor:
    """How much of its data a stage needs: tokens of a corpus, rows of everything else."""
    floors = {
        "continual_pretraining": limit.corpus_tokens,
        "sft": limit.sft_rows,
        "dpo": limit.preference_rows,
        "kto": limit.feedback_rows,
        "reward_model": limit.reward_model_rows,
    }
    return floors.get(stage, limit.prompt_rows)


def floor_of_kind(kind: DataKind, limit: Thresholds) -> Floor:
    """The same by the kind of data, for its first use."""
    return floor_of(next((stage for stage, used in DATA_OF.items() if used == kind), ""), limit)


def rows(facts: Facts, kind: DataKind) -> int | None:
    """Rows on hand of a kind; None where unknown, 0 where there are none."""
    held = facts.data(kind)
    return held.size.rows if held else 0


def big(number: float) -> str:
    """``5 billion``, ``300 million``, ``12,000``."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.4g} {name}"
    return f"{number:,.0f}"


def tokens(data: DataSet | None, limit: Thresholds) -> int | None:
    """Tokens of a body of text: counted, else from its bytes, else from its documents; None where nothing is known."""
    if data is None:
        return None
    size = data.size
    if size.tokens is not None:
        return size.tokens
    if size.bytes is not None:
        return round(size.bytes / limit.bytes_per_token)
    documents = size.docs if size.docs is not None else size.rows
    return None if documents is None else round(documents * limit.tokens_per_doc)


def enough(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Whether there are rows of a kind, and as many as its first use wants. Unknown numbers are given the doubt."""
    held = rows(facts, kind)
    return kind in facts.kinds and (held is None or held >= floor_of_kind(kind, limit).warn)


def some(facts: Facts, kind: DataKind, limit: Thresholds) -> bool:
    """Whether there are rows of a kind, and not fewer than anything can be learned from."""
    held = rows(facts, kind)
    return kind in facts.kinds and (held is None or held >= floor_of_kind(kind, limit).below)


def denied(facts: Facts, kind: DataKind) -> bool:
    """Whether it is said that there is nothing of a kind."""
    said = [e for e in facts.evidence if e.field in (f"data.{kind}", f"data.{kind}.rows")]
    none = [
        e for e in said if (e.status == "negated") != (e.value in (False, 0)) and e.status in ("asserted", "negated")
    ]
    return bool(none) and kind not in facts.kinds


def scorer(facts: Facts) -> str | None:
    """What can score an answer: its kind, or None where nothing can or nothing is known."""
    kind = facts.project.reward.kind
    return kind if kind in SCORERS else None


def skill(facts: Facts) -> str | None:
    """The capability to be raised: named, or a task that is one."""
    task = facts.project.task.type
    return facts.project.behaviour.target_capability or (task if task in SKILLS else None)


def gap(facts: Facts) -> float | None:
    """Target less baseline, in the metric's own unit; None where either is unknown."""
    baseline, target = facts.project.evals.baseline, facts.project.evals.target
    return None if baseline is None or target is None else target - baseline


def falls_short(facts: Facts) -> bool:
    """Whether a prompt was seen to miss what is wanted: said so, or measured below the target."""
    missing = gap(facts)
    return bool(facts.project.behaviour.prompt_falls_short) or (missing is not None and missing > 0)


def tried(facts: Facts, *methods: str) -> bool:
    """Whether one of these has been tried; without a name, whether anything has."""
    return any(not methods or t in methods for t in facts.project.tried or ())


def asked(facts: Facts, *methods: str) -> bool:
    """Whether one of these methods is asked for, by the user or by those the user speaks of."""
    return facts.project.requested in methods


def own_wish(facts: Facts) -> bool:
    """Whether the method asked for is the user's own wish, not what others want."""
    return any(e.status in ("asserted", "planned") for e in facts.all("requested"))


def wants_scorer(facts: Facts) -> bool:
    """Whether a reward model is to be trained, and there are comparisons for it."""
    planned = any(e.value == "reward_model" for e in facts.all("reward.kind", "planned"))
    return (asked(facts, "reward_model") or planned) and facts.coming("preference_pairs") is not None


def wants_behaviour(facts: Facts) -> bool:
    """Whether it is known how the model should act: rules, a format, a manner, a skill, or what people liked better."""
    b = facts.project.behaviour
    formed = b.output_format in ("fixed", "strict_schema")
    judged = any(kind in facts.kinds for kind in JUDGED)
    return bool(b.rules_count or b.style_or_persona or skill(facts) or formed or judged)


def knows_what_for(facts: Facts) -> bool:
    """Whether it is known what should be different afterwards: how it acts, what it knows, or which task it does."""
    p = facts.project
    knowledge = p.knowledge.needs_citations or p.knowledge.unseen_domain or p.knowledge.source == "proprietary"
    fresh = p.knowledge.changes not in (None, "never")
    named = p.task.type not in (None, "other", "chat", "qa", "domain_model")
    return bool(wants_behaviour(facts) or knowledge or fresh or named)
