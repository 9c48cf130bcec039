"""Votes for training behaviour: many rules, a skill, a style, judged answers."""

from __future__ import annotations

from align.rules import (
    AUTOMATIC,
    JUDGED,
    PROGRAMS,
    SHORTFALL,
    DataKind,
    Facts,
    Option,
    Thresholds,
    Vote,
    Weight,
    asked,
    denied,
    enough,
    exhausted,
    falls_short,
    fewer,
    format_score,
    gap,
    has_goal,
    learnable,
    scorer,
    shortfall,
    skill,
    some,
    tried,
    wants_scorer,
)


def many_rules(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-1: a model forgets some of twenty instructions, however they are put."""
    count = facts.project.behaviour.rules_count
    if count is None or count < limit.many_rules or exhausted(facts, limit):
        return None
    because = f"{count} instructions have to hold at once, and models begin to drop some from about {limit.many_rules}"
    because += f"; {shortfall(facts)}" if falls_short(facts, limit) else ""
    flips = f"there were fewer than {limit.many_rules}, or a prompt kept them all"
    return Vote("post_training", "hard", because, ("behaviour.rules_count", *SHORTFALL), flips, "POST")


def skill_with_data(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-2: a skill, and data or a score to learn it from.

    Soft where the data are thin or a prompt nearly does it.
    """
    wanted, found = skill(facts), learnable(facts, limit)
    if not wanted or not found:
        return None
    missing = gap(facts)
    near = missing is not None and missing <= limit.near_target
    weight: Weight = "hard" if any(plenty for _, plenty in found) and not near else "soft"
    because = f"{wanted.replace('_', ' ')} can be trained, and there is something to learn it from"
    because += f"; {shortfall(facts)}" if falls_short(facts, limit) else ""
    fields = ("behaviour.target_capability", "task.type", *(field for field, _ in found), *SHORTFALL)
    # The finding rests on the first of these kinds that is there, and no longer holds without it...
    order: tuple[DataKind, ...] = ("sft_pairs", *JUDGED, "prompts")
    learned = next((kind for kind in order if f"data.{kind}" in fields), None)
    lacking = [] if learned is None else [f"there were {fewer(facts, learned, limit)}"]
    # ...unless answers can be scored: then the skill can be learned from rewards alone.
    scored = scorer(facts) in PROGRAMS
    lacking += ["nothing could score an answer"] if scored and weight == "soft" else []
    flips = f"{' and '.join(lacking)}, or a prompt came within {format_score(limit.near_target)} of the target"
    return Vote("post_training", weight, because, fields, flips, "POST")


def style(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-3: a style, or any answers at all of a model that only continues text, with examples of it.

    Hard once prompting has been tried (a base model cannot be prompted into it), else soft.
    """
    p = facts.project
    wanted = p.behaviour.style_or_persona or p.model.type == "base"
    if not wanted or not enough(facts, "sft_pairs", limit):
        return None
    short = falls_short(facts, limit)
    prompted = tried(facts, "prompting", "few_shot") or short or p.model.type == "base"
    because = "a style is learned from examples, and there are enough of them"
    because += f"; {shortfall(facts)}" if short else ""
    stated = ("behaviour.style_or_persona", "model.type", "data.sft_pairs", "tried.prompting", "tried.few_shot")
    fields = (*stated, *SHORTFALL)
    flips = f"there were fewer than {limit.sft_rows.warn} examples, or a prompt was enough"
    return Vote("post_training", "hard" if prompted else "soft", because, fields, flips, "POST")


def some_rules(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-4: between few and many rules, where a prompt was measured to miss and there are examples."""
    count = facts.project.behaviour.rules_count
    between = count is not None and limit.few_rules < count < limit.many_rules
    if not between or not some(facts, "sft_pairs", limit) or not falls_short(facts, limit):
        return None
    because = f"there are {count} instructions and examples to learn them from; {shortfall(facts)}"
    fields = ("behaviour.rules_count", "data.sft_pairs", *SHORTFALL)
    flips = f"there were {limit.few_rules} or fewer, or a prompt reached the target"
    return Vote("post_training", "soft", because, fields, flips, "POST")


def judged_answers(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-5: people's judgements of answers are data that no prompt can hold."""
    held: list[DataKind] = [kind for kind in JUDGED if some(facts, kind, limit)]
    if not held:
        return None
    plenty = any(enough(facts, kind, limit) for kind in held)
    because = "judged answers show what people prefer better than instructions do, and a model can learn from them"
    fields = (*(f"data.{kind}" for kind in held), "model.type")
    standing = next((kind for kind in held if enough(facts, kind, limit)), held[0])
    flips = f"there were {fewer(facts, standing, limit)}"
    return Vote("post_training", "hard" if plenty else "soft", because, fields, flips, "ALG_DPO")


def examples_beyond_prompts(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-6: examples of what is wanted, where a prompt was seen to miss it or training is requested.

    Or the field is one that the model has hardly seen, which no prompt makes up for. After a measured miss few examples
    are worth a try too, since no better prompt is known.
    """
    seen = falls_short(facts, limit) and some(facts, "sft_pairs", limit)
    unseen = bool(facts.project.knowledge.unseen_domain)
    requested = asked(facts, "sft", "post_training") or facts.project.training.tuning is not None
    wanted = unseen or (requested and has_goal(facts))
    if not seen and not (wanted and enough(facts, "sft_pairs", limit)):
        return None
    because = "training is requested, and there are enough examples of what is wanted"
    if seen:
        because = f"there are examples of what is wanted; {shortfall(facts)}"
    elif unseen:
        because = "the model has hardly seen this field, and there are enough examples of what is wanted"
    fields = ("data.sft_pairs", *SHORTFALL, "knowledge.unseen_domain", "requested", "training.tuning")
    flips = f"there were {fewer(facts, 'sft_pairs', limit)}, or a prompt reached the target"
    return Vote("post_training", "soft", because, fields, flips, "ALG_SFT")


def checked_prompts(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-POST-7: prompts with something that scores answers are data for learning from rewards.

    Where a prompt was seen to fall short, a scorer that is a program is enough: prompts are the lesser need.
    """
    missed = falls_short(facts, limit) and scorer(facts) in PROGRAMS and not denied(facts, "prompts")
    if scorer(facts) is None or not (some(facts, "prompts", limit) or missed):
        return None
    because = "there is something that tells a good answer from a bad one"
    because += f"; {shortfall(facts)}" if falls_short(facts, limit) else ", and there are prompts to try it on"
    fields = ("data.prompts", "reward.kind", *SHORTFALL)
    return Vote("post_training", "soft", because, fields, "nothing could score an answer", "ALG_RL")


def best_of_n(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-BON-1: where answers can be scored and there is time for several, the best of a few needs no training."""
    c = facts.project.constraints
    if scorer(facts) not in AUTOMATIC or wants_scorer(facts):
        return None
    slow = c.latency_s is None or c.latency_s >= limit.quick_answer_s
    little = c.requests_per_day is not None and c.requests_per_day <= limit.low_traffic_per_day
    if c.max_n == 1 or not slow or not (c.weights_frozen or little or c.max_n or asked(facts, "best_of_n")):
        return None
    nothing_else = not facts.kinds & {"sft_pairs", *JUDGED}
    proven = scorer(facts) == "reward_model" and ((little and nothing_else) or asked(facts, "best_of_n"))
    because = "answers can be scored and there is time to sample several: the best of them is better, without training"
    fields = (
        "reward.kind",
        "constraints.weights_frozen",
        "constraints.requests_per_day",
        "constraints.max_n",
        "requested",
    )
    flips = f"an answer had to come within {limit.quick_answer_s:g} s, or there were more requests"
    return Vote("best_of_n", "hard" if c.weights_frozen or proven else "soft", because, fields, flips, "ALG_BON")


def frozen(facts: Facts, limit: Thresholds) -> list[Vote]:
    """R-FRZ-1: weights that must stay are not trained; a separate scorer may be."""
    if not facts.project.constraints.weights_frozen:
        return []
    separate = wants_scorer(facts) and some(facts, "preference_pairs", limit)
    fields = ("constraints.weights_frozen",)
    options: list[Option] = ["continual_pretraining"] if separate else ["continual_pretraining", "post_training"]
    return [
        Vote(option, "veto", "the weights must stay as they are", fields, "they were allowed to change", "NOT_ALWAYS")
        for option in options
    ]
