"""The axis of behaviour, where words do: few rules, a form, a target that is reached, nothing to learn from."""

from __future__ import annotations

from align.rules import (
    JUDGED,
    ONLINE,
    Facts,
    Thresholds,
    Vote,
    asked,
    denied,
    doubtful,
    enough,
    exhausted,
    falls_short,
    fits_prompt,
    format_count,
    format_score,
    gap,
    learnable,
    purpose,
    requested_by_user,
    scorer,
    shortfall,
    some,
    tried,
    untried,
)


def few_rules(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-1: a handful of rules fit into a prompt, with a check of the answer behind it."""
    count = facts.project.behaviour.rules_count
    if not count or count > limit.few_rules:
        return None
    fit = "1 rule fits" if count == 1 else f"{count} rules fit"
    because = f"{fit} into a prompt, and each answer can be checked"
    flips = f"there were more than {limit.few_rules} rules"
    return Vote("prompting", "soft", because, ("behaviour.rules_count",), flips, "PROMPT")


def target_reached(facts: Facts, limit: Thresholds) -> list[Vote]:
    """R-PRM-2: what a prompt reaches already, by its score or as it is stated, is not trained."""
    missing = gap(facts)
    # "Not tried yet" is stored as False as well, and says nothing of what a prompt reaches.
    satisfied = facts.project.behaviour.prompt_falls_short is False and tried(facts, "prompting", "few_shot")
    fields: tuple[str, ...]
    if missing is not None and missing <= 0:
        because = shortfall(facts)
        fields, flips = ("evals.baseline", "evals.target"), "the target were above the baseline"
    elif missing is None and satisfied:
        because = "a good prompt was tried, and it is good enough"
        fields, flips = ("behaviour.prompt_falls_short", "tried.prompting", "tried.few_shot"), "the prompt fell short"
    else:
        return []
    return [
        Vote("prompting", "hard", because, fields, flips, "NOT_ALWAYS"),
        Vote("post_training", "veto", because, fields, flips, "NOT_ALWAYS"),
    ]


def middling_rules(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-3: between few and many rules a prompt comes first, until it is measured to miss."""
    count = facts.project.behaviour.rules_count
    if count is None or not limit.few_rules < count < limit.many_rules:
        return None
    if some(facts, "sft_pairs", limit) and falls_short(facts, limit):
        return None
    because = f"{count} rules are not too many for a prompt; training needs examples and a prompt seen to fall short"
    flips = "there were examples, and a good prompt was seen to fall short"
    return Vote("prompting", "soft", because, ("behaviour.rules_count",), flips, "PROMPT")


def a_format(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-4: a prompt keeps one format, with constrained decoding and a validator."""
    if facts.project.behaviour.output_format not in ("fixed", "strict_schema"):
        return None
    if some(facts, "sft_pairs", limit) and falls_short(facts, limit):
        return None
    if facts.project.behaviour.rules_count is not None and facts.project.behaviour.rules_count > limit.few_rules:
        return None
    because = "a prompt, constrained decoding and a validator keep a format"
    flips = "there were examples, and a good prompt with a validator was seen to fall short"
    return Vote("prompting", "soft", because, ("behaviour.output_format",), flips, "PROMPT")


def nothing_to_learn_from(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-5: a goal, and too little to train on: the best prompt, with a few examples in it, comes first."""
    p = facts.project
    goal = purpose(facts) or p.task.description
    used = tried(facts, "prompting") or p.task.type not in (None, "other")
    there = used and denied(facts, "sft_pairs")  # it is in use, and there is nothing to change it by but words
    there = there or "sft_pairs" in facts.kinds  # a few examples say what is wanted
    judged = any(some(facts, kind, limit) for kind in JUDGED)  # what no prompt can hold
    if not (goal or there) or judged or enough(facts, "sft_pairs", limit) or enough(facts, "prompts", limit):
        return None
    if scorer(facts) and some(facts, "prompts", limit):
        return None
    if requested_by_user(facts) and asked(facts, "rlhf", *ONLINE) and not scorer(facts):
        return None  # what is wanted is learning from rewards: what scores has to be known first
    if p.knowledge.unseen_domain or doubtful(facts):
        return None  # no prompt holds a field; and data that are only spoken of have to be known first
    if falls_short(facts, limit) and (learnable(facts, limit) or exhausted(facts, limit)):
        return None  # more of the same would be asked of a prompt that was seen to fall short
    because = "there is a goal and too little to train on: a good prompt with a few examples in it comes first"
    goal_fields = ("behaviour.target_capability", "behaviour.style_or_persona", "task.type", "task.description")
    fields = (*goal_fields, "data.sft_pairs", "tried.prompting")
    flips = f"there were {limit.sft_rows.warn} examples or something that scores answers, and a good prompt fell short"
    return Vote("prompting", "soft", because, fields, flips, "NOT_ALWAYS")


def nearly_there(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-6: the last points are cheaper with a better prompt and a validator."""
    missing = gap(facts)
    if missing is None or not 0 < missing <= limit.near_target:
        return None
    because = f"{shortfall(facts)}; a better prompt and a validator may close the gap"
    fields = ("evals.baseline", "evals.target")
    flips = f"the gap were larger than {format_score(limit.near_target)}"
    return Vote("prompting", "soft", because, fields, flips, "PROMPT")


def many_rules_no_rows(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-7: many rules without an example to learn them from: a prompt and a checker write the first ones."""
    count = facts.project.behaviour.rules_count
    untaught = facts.project.data == [] and not scorer(facts) and not exhausted(facts, limit)
    if count is None or count < limit.many_rules or not untaught:
        return None
    because = "there is nothing to train on yet; a prompt and a checker can produce the first examples"
    fields = ("data.sft_pairs", "behaviour.rules_count")
    return Vote("prompting", "soft", because, fields, f"there were {limit.sft_rows.warn} examples", "PROMPT")


def no_prompt_tried(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-8: a prompt comes first where none was tried, or none was seen to fall short."""
    if not untried(facts, limit):
        return None
    because = "no prompt was seen to fall short yet, and a good one is the cheapest thing to try"
    fields = ("behaviour.prompt_falls_short",)
    return Vote("prompting", "soft", because, fields, "a good prompt was seen to fall short", "PROMPT")


def static_page(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-9: a few pages that hardly change stand in the prompt; nothing has to be looked up."""
    k = facts.project.knowledge
    stated = k.changes in ("never", "yearly")
    pages = fits_prompt(facts, limit) or (k.changes == "never" and not facts.kinds & {"corpus", "documents"})
    shown = k.needs_citations or k.per_user or k.unseen_domain
    if not stated or not pages or shown or learnable(facts, limit):
        return None
    because = "what it has to know hardly changes and fits into the prompt"
    fields = ("knowledge.changes", "data.documents", "data.corpus")
    flips = f"it were more than {format_count(limit.prompt_tokens)} tokens, changed more often, or had to be cited"
    return Vote("prompting", "soft", because, fields, flips, "PROMPT")


def prompt_suffices(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-PRM-10: nearly all answers are right, and nobody wants more."""
    e = facts.project.evals
    if e.target is not None or e.baseline is None or not 1 - limit.near_target <= e.baseline <= 1:
        return None
    because = f"{shortfall(facts)}, and no higher target is known"
    return Vote("prompting", "soft", because, ("evals.baseline",), "more were wanted", "NOT_ALWAYS")
