"""Votes for ``insufficient``: no goal, no data for the method requested, no scorer."""

from __future__ import annotations

from align.rules import (
    DATA_OF,
    ONLINE,
    SCORERS,
    SHORTFALL,
    TRAINED_ON,
    TRAINING,
    Facts,
    Thresholds,
    Vote,
    asked,
    doubtful,
    exhausted,
    format_count,
    has_goal,
    scorer,
    shortfall,
    tokens,
)


def neither_goal_nor_data(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-1: without a goal and without data, no option has support."""
    if has_goal(facts) or facts.kinds & {*TRAINED_ON, "corpus", "documents"}:
        return None
    because = "it is not known what should be different afterwards, nor what data there are"
    fields = ("requested", "task.type", "data", "model.params_b", "hardware.gpus", "constraints.budget_usd")
    return Vote("insufficient", "soft", because, fields, "the goal were known", "NOT_ALWAYS")


def no_goal(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-5: data without a goal may be for anything."""
    held = facts.kinds & {*TRAINED_ON, "corpus", "documents"}
    if has_goal(facts) or not held:
        return None
    because = "there are data, but it is not known what should be different afterwards"
    fields = (*(f"data.{kind}" for kind in sorted(held)), "requested")
    return Vote("insufficient", "soft", because, fields, "the goal were known", "NOT_ALWAYS")


def asked_without_data(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-2: the method that is requested has nothing to learn from."""
    wanted = facts.project.requested
    if wanted not in (*TRAINING, "continual_pretraining") or wanted in ("rlhf", *ONLINE):
        return None
    kinds = {DATA_OF[wanted]} if wanted in DATA_OF else {*TRAINED_ON}
    if facts.kinds & kinds or (wanted in DATA_OF and facts.kinds & {*TRAINED_ON}):
        return None
    because = f"{wanted.replace('_', ' ')} is requested, and there are no data it could learn from"
    return Vote("insufficient", "soft", because, ("requested", "data"), "there were data for it", "CODESIGN")


def rewards_without_scorer(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-3: prompts and learning from rewards need something that scores, or comparisons to learn a scorer from."""
    wanted = asked(facts, "rlhf", "best_of_n", *ONLINE)
    only_prompts = facts.kinds & {*TRAINED_ON} == {"prompts"}
    if not (wanted or only_prompts) or scorer(facts) or "preference_pairs" in facts.kinds:
        return None
    because = "there are prompts" if only_prompts else f"{facts.project.requested} is requested"
    because += ", and nothing is known that could score an answer"
    flips = f"there were a {', '.join(SCORERS[:2]).replace('_', ' ')} or comparisons to train one from"
    return Vote("insufficient", "soft", because, ("requested", "data.prompts", "reward.kind"), flips, "ALG_RL")


def text_of_unknown_size(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-4: whether a field is pre-trained on or looked up hangs on how much text there is."""
    meant = facts.project.knowledge.unseen_domain or asked(facts, "continual_pretraining")
    if not meant or "documents" in facts.kinds or tokens(facts.data("corpus"), limit) is not None:
        return None
    enough = format_count(limit.corpus_tokens.warn)
    because = f"how much text there is decides between pre-training (from {enough} tokens) and retrieval"
    fields = ("data.corpus", "knowledge.unseen_domain", "requested")
    return Vote("insufficient", "soft", because, fields, "the number of tokens were known", "CPT")


def doubtful_data(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-7: data that are only mentioned, or that nobody has looked at, may be anything from nothing to enough."""
    if not doubtful(facts):
        return None
    because = "there are said to be data, and of what kind or how many is not known; the method hangs on it"
    fields = tuple(f"data.{kind}" for kind in TRAINED_ON)
    return Vote("insufficient", "soft", because, fields, "the data had been looked at", "CODESIGN")


def exhausted_prompt(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-INS-6: prompts fall short, so it has to be learned; what from, is what everything hangs on."""
    if not exhausted(facts, limit):
        return None
    because = f"{shortfall(facts)}, so it has to be learned, and nothing is known that it could be learned from"
    fields = (*SHORTFALL, "data", "reward.kind")
    return Vote("insufficient", "soft", because, fields, "there were examples, judged answers or a scorer", "CODESIGN")
