"""Questions to the user: first those that could change the answer, then those about carrying it out."""

from __future__ import annotations

from collections.abc import Iterator

from align.rules import (
    DATA_OF,
    FITS_WEIGHTS,
    ONLINE,
    TRAINED_ON,
    TRAINING,
    Ask,
    Conflict,
    Facts,
    Thresholds,
    asked,
    has_goal,
    scorer,
    skill,
    tokens,
)


def _trains(facts: Facts) -> bool:
    return facts.plan is not None and any(stage in FITS_WEIGHTS for stage in facts.plan.stages)


def _undecided(facts: Facts) -> bool:
    return facts.plan is not None and facts.plan.primary == "insufficient"


def goal(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-GOAL: what should be different afterwards."""
    if not _undecided(facts) or has_goal(facts):
        return None
    question = "What should be different afterwards? Give one answer that is wrong today and how it should read."
    return Ask("goal", "task.description", question, "whether training is the answer at all")


def data(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-DATA: what there is to learn from."""
    if facts.kinds & {*TRAINED_ON, "corpus", "documents"} and not _undecided(facts):
        return None
    if facts.kinds & {*TRAINED_ON, "corpus"}:
        return None
    if not (_undecided(facts) or _trains(facts) or asked(facts, *TRAINING, "continual_pretraining")):
        return None
    question = "What data are there: examples with the answer wanted, judged answers, prompts, documents? How many?"
    return Ask("data", "data", question, "which method, or whether any, can be trained")


def data_kind(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-KIND: of what kind rows are that only their number, or their origin, is known of."""
    unlabelled = "logs" in facts.kinds and not facts.kinds & {*TRAINED_ON}
    unexplained = _undecided(facts) and facts.kinds & {*TRAINED_ON} and not has_goal(facts)
    if not (unlabelled or unexplained):
        return None
    question = "What is one row: an answer as it should be, a judged answer, or only a logged conversation?"
    return Ask("data_kind", "data", question, "examples: sft; judged: dpo or kto; only logged: nothing to train on yet")


def data_size(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-SIZE: how much there is of what the method would learn from."""
    asked_for = {DATA_OF[w]} if (w := facts.project.requested) in DATA_OF else set()
    planned = {DATA_OF[s] for s in (facts.plan.stages if facts.plan else ()) if s in DATA_OF}
    unseen = {"corpus"} if facts.project.knowledge.unseen_domain else set()
    for kind in sorted(facts.kinds & (asked_for | planned | unseen | ({*TRAINED_ON} if _undecided(facts) else set()))):
        held = facts.data(kind)
        size = tokens(held, limit) if kind == "corpus" else held.size.rows if held else None
        if size is None:
            unit = "tokens (or bytes) of text" if kind == "corpus" else f"rows of {kind.replace('_', ' ')}"
            changes = "continual pre-training or retrieval" if kind == "corpus" else "training or prompting"
            return Ask("data_size", f"data.{kind}", f"How many {unit} are there?", changes)
    return None


def reward(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-REWARD: what tells a good answer from a bad one."""
    wanted = asked(facts, "rlhf", "best_of_n", *ONLINE)
    only_prompts = facts.kinds & {*TRAINED_ON} == {"prompts"}
    open_ = _undecided(facts) and (facts.project.reward.kind == "none" or skill(facts))
    if scorer(facts) or not (wanted or only_prompts or open_):
        return None
    question = "Can anything score an answer: a program, a reward model, people? Or are there comparisons of answers?"
    return Ask("reward", "reward.kind", question, "whether anything can be learned from rewards")


def evals(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-EVALS: how success is measured, and where it stands today."""
    e = facts.project.evals
    if not (_trains(facts) or _undecided(facts)) or (e.held_out_rows is not None and e.baseline is not None):
        return None
    question = (
        "How is success measured, where does the best prompt stand, what is needed, and on how many held-out rows?"
    )
    field = "evals.baseline" if e.baseline is None else "evals.held_out_rows"
    return Ask("evals", field, question, "whether a prompt does already, and which effect can be seen")


def model(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-MODEL: which model it starts from."""
    if not (_trains(facts) or _undecided(facts)) or facts.project.model.params_b is not None:
        return None
    return Ask("model", "model.name", "Which model does it start from, and how large is it?", "memory, time, stages")


def hardware(facts: Facts, limit: Thresholds) -> Ask | None:
    """Q-HARDWARE: what it would run on."""
    h = facts.project.hardware
    known = h.gpus == 0 or (h.gpus is not None and (h.memory_gb is not None or h.gpu is not None))
    if not (_trains(facts) or _undecided(facts)) or known:
        return None
    return Ask(
        "hardware", "hardware.gpus", "Which GPUs are there, how many, with how much memory?", "what fits, how long"
    )


def reading(facts: Facts, limit: Thresholds) -> Iterator[Ask]:
    """Q-READING: which of two readings of the description is right, the words' or the model's."""
    for field, *readings in sorted({(c.field, *_words(c)) for c in facts.conflicts if _prose(c)}):
        question = f"The description is read in two ways, as {' and as '.join(readings)}. Which is right?"
        yield Ask(f"reading.{field}", field, question, "what everything else rests on")


def _words(conflict: Conflict) -> tuple[str, str]:
    """Return both readings in words, with their status where that is what differs."""
    readings = conflict.taken, conflict.dropped
    differ = len({e.status for e in readings}) > 1
    taken, dropped = (f"{e.field} = {e.value}{f', {e.status}' * differ} ({e.quote!r})" for e in readings)
    return taken, dropped


def _prose(conflict: Conflict) -> bool:
    return {conflict.taken.source, conflict.dropped.source} == {"text", "model"}
