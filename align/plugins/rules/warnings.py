"""Warnings. Most depend on the advice, so they need the plan (``facts.plan``)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from align.rules import (
    CHANGING,
    DATA_OF,
    FITS_WEIGHTS,
    ONLINE,
    SAMPLING,
    TRAINED_ON,
    TRAINING,
    Facts,
    Thresholds,
    Warn,
    asked,
    budget_of,
    denied,
    falls_short,
    format_count,
    requested_by_user,
    scorer,
    tried,
)

RESTRICTED = re.compile(
    r"mixed|vari|unknown|unclear|restrict|proprietary|copyright|non-?commercial|\bnc\b|licen[cs]ed|client"
)


def too_little_data(facts: Facts, limit: Thresholds) -> list[Warn]:
    """W-DATA: less than the method that is advised, or asked for, is known to need; a note where none is."""
    if facts.plan is None:
        return []
    advised = [step.stage for step in facts.plan.steps if step.stage in DATA_OF and not step.optional]
    stages = dict.fromkeys([*advised, *_requested_stages(facts)])
    if stages:
        return [w for stage in stages if (w := _thin(facts, stage, limit))]
    unused = [
        w for stage in ("sft", "dpo", "kto") if DATA_OF[stage] in facts.kinds and (w := _thin(facts, stage, limit))
    ]
    return [replace(w, level="note") for w in unused]


def _requested_stages(facts: Facts) -> list[str]:
    """The stages that are asked for, or were run already: what the data on hand were meant for."""
    wanted = facts.project.requested
    given = {*facts.kinds, *(d.kind for d in facts.planned)}
    text = bool(given & {"corpus", "documents"}) and not given & {*TRAINED_ON}
    if wanted == "continual_pretraining" or (wanted in DATA_OF and not text):
        return [wanted]
    if not (asked(facts, *TRAINING) or tried(facts, "fine_tuning")):
        return []
    stages = [stage for stage in ("sft", "dpo", "kto") if DATA_OF[stage] in given]
    return stages or (["continual_pretraining"] if text else [])


def _thin(facts: Facts, stage: str, limit: Thresholds) -> Warn | None:
    if stage == "continual_pretraining":
        return _thin_text(facts, limit)
    kind = DATA_OF[stage]
    found = budget_of(facts.coming(kind), stage, limit)
    if denied(facts, kind) and facts.coming(kind) is None:
        found = replace(found, given=0)
    if not found.thin:
        return None
    text = (
        f"{found.given:,} {found.unit} for {stage}: {found.floor.warn:,} or more are recommended, and it cannot work "
    )
    text += f"with fewer than {found.floor.below:,}"
    return Warn("too_little_data", text, (f"data.{kind}",), _level(facts, stage, found.hopeless))


def _thin_text(facts: Facts, limit: Thresholds) -> Warn | None:
    """A folder of files, of whatever size, is hardly ever a corpus: 0.1B tokens are some 50,000 documents."""
    held = facts.coming("corpus") or facts.coming("documents")
    found = budget_of(held, "continual_pretraining", limit)
    unknown = found.given is None and held is not None and held.kind == "documents"
    if held is None or not (found.thin or unknown):
        return None
    much = "some documents" if found.given is None else f"{format_count(found.given)} tokens of text"
    text = f"{much}: pre-training needs about {format_count(found.floor.warn)} tokens "
    text += f"and cannot work with fewer than {format_count(found.floor.below)}"
    return Warn("too_little_data", text, (f"data.{held.kind}",), _level(facts, "continual_pretraining", found.hopeless))


def _level(facts: Facts, stage: str, hopeless: bool) -> Literal["warning", "error"]:
    """An error where what cannot work is asked for, or is all that is advised."""
    advised = facts.plan is not None and stage in facts.plan.stages
    requested = facts.project.requested == stage and requested_by_user(facts)
    return "error" if hopeless and (advised or requested) else "warning"


def forgetting(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-FORGET: a model forgets what it is not trained on, most in pre-training and where all weights change."""
    if facts.plan is None:
        return None
    continued = "continual_pretraining" in facts.plan.stages or (
        asked(facts, "continual_pretraining") and requested_by_user(facts)
    )
    whole = facts.project.training.tuning == "full" and any(s in FITS_WEIGHTS for s in facts.plan.stages)
    if not continued and not whole:
        return None
    text = "the model forgets what is not in the data: mix in 1-5% general text (10-30% for another language), "
    text += "select with care, and measure general skills before and after"
    fields = ("data.corpus", "training.tuning", "requested")
    return Warn("forgetting", text, fields)


def adapter_on_a_corpus(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-ADAPTER: an adapter learns less of a corpus than all weights do (Biderman 2405.09673; ChipNeMo 2311.00176)."""
    tuning = facts.project.training.tuning
    if facts.plan is None or "continual_pretraining" not in facts.plan.stages or tuning not in ("lora", "qlora"):
        return None
    text = f"{tuning} learns less from a corpus than all weights do; it forgets less too"
    return Warn("adapter_learns_less", text, ("training.tuning",))


def needs_eval_gate(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-GATE: training may cost other abilities, so nothing ships unmeasured; nor does what a scorer picks."""
    stages = facts.plan.stages if facts.plan else ()
    trained = [s for s in stages if s in FITS_WEIGHTS]
    if not trained and "best_of_n" not in stages:
        return None
    names = " and ".join(dict.fromkeys(trained))
    text = f"{names} may harm other abilities: ship only if the target metric rose and no guarded metric fell"
    if trained in ([], ["reward_model"]):
        text = "the result is only as good as the scorer: measure how often it agrees with people on held-out pairs"
    return Warn("needs_eval_gate", text)


def needs_rag_eval(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-RAG: retrieval has failures of its own."""
    if facts.plan is None or "rag" not in facts.plan.stages:
        return None
    text = (
        "measure how often the right page is found, how often answers keep to it, and 'unknown' where no page answers"
    )
    return Warn("needs_rag_eval", text)


def data_freshness(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-FRESH: trained weights stay at the day of their data; a note where nobody wants to train."""
    changes = facts.project.knowledge.changes
    trains = facts.plan is not None and any(s in FITS_WEIGHTS for s in facts.plan.stages)
    wanted = trains or asked(facts, *TRAINING, "continual_pretraining") or tried(facts, "fine_tuning")
    if changes not in CHANGING and not (changes == "yearly" and wanted):
        return None
    text = f"the facts change ({changes}), and what is trained in is out of date from then on: "
    text += "keep them in the index, and renew it"
    return Warn("data_freshness", text, ("knowledge.changes", "requested"), "warning" if wanted else "note")


def reward_hacking(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-HACK: whatever is rewarded is what is learned."""
    planned = facts.plan is not None and any(s in SAMPLING for s in facts.plan.stages)
    wanted = asked(facts, "rlhf", *ONLINE) and scorer(facts)
    if not planned and not wanted:
        return None
    text = "the score will be gamed: try empty, copied and over-long answers on it first, hold back a second measure, "
    text += "and read samples while it trains"
    return Warn("reward_hacking", text, ("reward.kind", "requested"))


def missing_reward(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-REWARD: learning from rewards without one."""
    only_prompts = facts.kinds & {*TRAINED_ON} == {"prompts"}
    wanted = asked(facts, "rlhf", "best_of_n", *ONLINE)
    if not (wanted or only_prompts) or scorer(facts):
        return None
    learned = facts.plan is not None and "reward_model" in facts.plan.stages
    if learned or ("preference_pairs" in facts.kinds and asked(facts, "rlhf")):
        return None  # a reward model is trained from the pairs
    text = "prompts without answers can be learned from only by rewards, and nothing is known that can score an answer"
    return Warn(
        "missing_reward", text, ("reward.kind", "requested"), "error" if requested_by_user(facts) else "warning"
    )


def memory_does_not_fit(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-MEMORY: the plan requested does not fit the hardware, or none does."""
    hardware = facts.plan.hardware if facts.plan else None
    if hardware is None or hardware.capacity_gb is None:
        return None
    fields = ("model.params_b", "hardware.gpus", "hardware.memory_gb", "training.tuning")
    asked_for, chosen = hardware.asked, hardware.chosen
    if asked_for is not None and asked_for.verdict == "does_not_fit":
        text = f"{asked_for.strategy} needs {asked_for.total_gb:.0f} GB a GPU of {hardware.capacity_gb:.0f}"
        text += f"; {chosen.strategy} fits" if chosen else "; no other plan fits either"
        return Warn("memory_does_not_fit", text, fields, "error")
    if chosen is None:
        nearest = min(hardware.rejected, key=lambda fit: fit.total_gb, default=None)
        least = f": even {nearest.strategy} needs {nearest.total_gb:.0f} GB a GPU" if nearest else ""
        return Warn("memory_does_not_fit", f"no memory plan fits {hardware.given}{least}", fields, "error")
    continued = facts.plan is not None and "continual_pretraining" in facts.plan.stages
    if asked_for is None and continued and not chosen.strategy.startswith("full"):
        text = f"all weights do not fit {hardware.given}, and {chosen.strategy} learns less from a corpus"
        return Warn("memory_does_not_fit", text, fields)
    return None


def judge_bias(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-JUDGE: a model as judge prefers length, a position, its own family."""
    labelled = any(_by_a_model(d.labelled_by) for d in facts.project.data or ())
    judged = facts.project.evals.judge == "model" or scorer(facts) == "llm_judge"
    if not labelled and not judged:
        return None
    text = (
        "a model gives the labels or the scores: it prefers long answers, one position, and answers of its own family. "
    )
    text += "Swap the order, control for length, let another family judge, and check a sample by hand"
    return Warn("judge_bias", text, ("data.preference_pairs.labelled_by", "evals.judge", "reward.kind"))


MODELS = re.compile(
    r"(?<![a-z])(?:llms?|(?:chat)?gpt|ai|a\.i|ki|ia|models?|modell|modelo|"
    r"\w*sprachmodell|teacher|machine|synthetic|distill\w*|rlai[fh]|auto|automatic(?:ally)?|bots?|"
    r"claude|gemini|gemma|bard|palm|llama|vicuna|alpaca|qwen|mistral|mixtral|deepseek|grok|command-r|phi|nemotron|olmo|"
    r"tulu|glm|kimi|yi|falcon|prometheus|skywork|sonnet|opus|haiku|o[134])(?![a-z])|模型|(?<![a-z\d])\d+(?:\.\d+)?b(?![a-z\d])",
    re.IGNORECASE,
)
"""Names of models among labellers; a number of parameters (``yi-34b``) marks one too."""
PEOPLE = re.compile(
    r"human|expert|user|people|person|rater|annotator|crowd|staff|doctor|resident|lawyer|customer|team|editor|agents?\b|"
    r"student|clerk|nurse|by hand|manual",
    re.IGNORECASE,
)
"""Names of people among labellers. They prevail over a model's: "experts, with GPT-4" have looked at the answers."""


def _by_a_model(labeller: str | None) -> bool:
    """Return whether a model labelled; a labeller that is not known to be one (``shop``, ``us``) counts as people."""
    return labeller is not None and MODELS.search(labeller) is not None and not PEOPLE.search(labeller)


def license_or_privacy(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-LICENCE: not everything that is on hand may be trained on."""
    data = facts.project.data or ()
    restricted = any(d.license and RESTRICTED.search(d.license.lower()) for d in data)
    personal = facts.project.knowledge.per_user or any(d.pii for d in data)
    if not (facts.project.constraints.regulated or restricted or personal):
        return None
    text = "personal or licensed material: make sure that you may train on it, remove what identifies people, and keep "
    text += "in mind that a model may repeat what it was trained on"
    kinds = [f"data.{d.kind}.{key}" for d in data for key in ("pii", "license")]
    return Warn("license_or_privacy", text, ("constraints.regulated", "knowledge.per_user", *kinds))


def contamination(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-CONTAMINATION: what was trained on cannot measure."""
    held = [d.kind for d in facts.project.data or () if d.overlaps_evals]
    if not held:
        return None
    text = (
        "evaluation rows are in the training data: remove them (exact and 8-gram overlap), or the score means nothing"
    )
    return Warn("contamination", text, tuple(f"data.{kind}.overlaps_evals" for kind in held), "error")


def brittle_prompt(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-PROMPT: prompts break by a paraphrase."""
    if facts.plan is None or "prompting" not in facts.plan.stages:
        return None
    text = "a prompt that works may fail on other words: validate each answer, retry or refuse, and test with "
    text += "paraphrases, long contexts and attacks"
    return Warn("brittle_prompt", text, ("behaviour.rules_count",))


def no_baseline(facts: Facts, limit: Thresholds) -> Warn | None:
    """W-BASELINE: nobody knows yet the results of the cheap methods; a note where nothing is to be trained.

    Impressions count as long as nothing says that there is no test set.
    """
    felt = (tried(facts) or falls_short(facts, limit)) and not denied(facts, "eval_set")
    if felt or facts.project.evals.baseline is not None:
        return None
    trains = facts.plan is not None and any(s in FITS_WEIGHTS for s in facts.plan.stages)
    wanted = trains or facts.project.tried == [] or asked(facts, *TRAINING, "continual_pretraining")
    text = "no baseline is known: score the untouched model with the best prompt first"
    return Warn("no_baseline", text, ("tried", "evals.baseline"), "warning" if wanted else "note")
