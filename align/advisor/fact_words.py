"""Facts in plain English: a field and its value as a clause, and evidence as a quote."""

from __future__ import annotations

from typing import Any

from align.advisor.data_budget import format_count
from align.advisor.project_facts import Evidence
from align.schemas.advice import Quote
from align.schemas.project import DataKind

METHODS: dict[str, str] = {
    "prompting": "a prompt with validators",
    "rag": "retrieval",
    "continual_pretraining": "continual pre-training",
    "post_training": "fine-tuning",
    "sft": "supervised fine-tuning",
    "dpo": "preference learning (dpo)",
    "kto": "learning from single verdicts (kto)",
    "reward_model": "a reward model",
    "rlhf": "learning from rewards (rlhf)",
    "grpo": "learning from rewards (grpo)",
    "rloo": "learning from rewards (rloo)",
    "ppo": "learning from rewards (ppo)",
    "best_of_n": "the best of several answers",
}
"""Methods by name, the stages of a plan among them."""

DATA: dict[DataKind, str] = {
    "corpus": "text for pre-training",
    "documents": "documents to look up",
    "sft_pairs": "labelled examples",
    "preference_pairs": "preference pairs",
    "unpaired_feedback": "answers marked good or bad",
    "prompts": "prompts without answers",
    "logs": "logs from production",
    "eval_set": "held-out evaluation rows",
}
"""The kinds of data, as a reader calls them."""

_TRIED = {"few_shot": "prompting with examples", "rag": "retrieval", "fine_tuning": "fine-tuning"}
_TERMS = {"sql": "SQL", "qa": "question answering", "domain_model": "a model of a field"}

_CLAUSES: dict[str, str] = {
    "task.type": "the task is {}",
    "task.description": "the task: {}",
    "task.languages": "the languages are {}",
    "behaviour.target_capability": "the skill to improve is {}",
    "requested": "{} is asked for",
    "knowledge.changes": "the facts change {}",
    "reward.path": "the scorer is {}",
    "reward.note": "on the scorer: {}",
    "model.name": "the model is {}",
    "model.params_b": "the model has {} billion parameters",
    "model.license": "the model's licence is {}",
    "model.note": "on the model: {}",
    "hardware.gpu": "{}",
    "hardware.memory_gb": "{} GB of memory on each GPU",
    "hardware.cpu_ram_gb": "{} GB of main memory",
    "hardware.interconnect": "connected by {}",
    "constraints.budget_usd": "the budget is {} US dollars",
    "constraints.deadline_days": "the deadline is in {} days",
    "constraints.latency_s": "an answer may take {} s",
    "constraints.requests_per_day": "there are {} requests a day",
    "evals.metric": "the measure is {}",
    "evals.baseline": "the best prompt reaches {} today",
    "evals.target": "the target is {}",
    "evals.suite": "the benchmarks are {}",
    "training.tuning": "the tuning asked for is {}",
    "training.max_length": "a sequence may have {} tokens",
    "data.tokens": "{} tokens",
    "data.bytes": "{} bytes",
    "data.path": "in {}",
    "data.quality": "of the quality {}",
    "data.license": "licence: {}",
    "data.labelled_by": "labelled by {}",
    "data.note": "note: {}",
}
"""Clauses with the value in its place; ``data.KEY`` is a property of a data set of any kind."""

_COUNTED: dict[str, tuple[str, str]] = {
    "behaviour.rules_count": ("rule must hold", "rules must hold at once"),
    "hardware.gpus": ("GPU", "GPUs"),
    "constraints.max_n": ("answer may be sampled for one request", "answers may be sampled for one request"),
    "evals.held_out_rows": ("row is held out", "rows are held out"),
    "data.rows": ("row", "rows"),
    "data.docs": ("document", "documents"),
}
"""Words behind a number: of one, and of several."""

_BY_VALUE: dict[str, dict[Any, str]] = {
    "task.type": {None: "the task is another one"},
    "behaviour.target_capability": {None: "no single skill is to be improved"},
    "requested": {None: "no method is asked for"},
    "behaviour.output_format": {
        "none": "the output is free text",
        "fixed": "the output has a fixed format",
        "strict_schema": "the output must follow a strict schema",
    },
    "behaviour.style_or_persona": {
        True: "a tone, a style or a persona is to be learned",
        False: "no tone, style or persona is to be learned",
    },
    "behaviour.prompt_falls_short": {
        True: "a good prompt was tried and falls short",
        False: "no good prompt was seen to fall short",
    },
    "knowledge.source": {
        "none": "no knowledge is missing",
        "public": "the knowledge needed is public",
        "proprietary": "the knowledge needed is your own",
    },
    "knowledge.changes": {"never": "the facts never change", "realtime": "the facts change all the time"},
    "knowledge.needs_citations": {
        True: "answers must show their sources",
        False: "answers need not show their sources",
    },
    "knowledge.unseen_domain": {
        True: "the model has hardly seen the field or the language",
        False: "the model knows the field and the language",
    },
    "knowledge.per_user": {
        True: "what may be known depends on who asks",
        False: "everybody may know the same",
    },
    "knowledge.pretraining_done": {
        True: "the model is already pre-trained on the field",
        False: "the model is not yet pre-trained on the field",
    },
    "reward.kind": {
        "none": "nothing can score an answer",
        "verifier": "a program can check an answer",
        "reward_model": "a reward model scores the answers",
        "llm_judge": "a language model judges the answers",
        "human": "people judge the answers",
    },
    "model.type": {
        "base": "a base model, which only continues text",
        "instruct": "an instruct model, which answers already",
    },
    "hardware.gpus": {0: "no GPU"},
    "constraints.on_prem": {
        True: "the data must not leave the organisation",
        False: "the data may leave the organisation",
    },
    "constraints.regulated": {
        True: "personal, client or licensed material is used",
        False: "no personal, client or licensed material is used",
    },
    "constraints.weights_frozen": {
        True: "the weights of the model must stay as they are",
        False: "the weights of the model may change",
    },
    "evals.judge": {
        "program": "a program judges the evaluation",
        "human": "people judge the evaluation",
        "model": "a model judges the evaluation",
    },
    "data.source": {
        "human": "written by people",
        "production": "from production",
        "synthetic": "synthetic",
        "public": "public",
    },
    "data.pii": {True: "with personal data", False: "without personal data"},
    "data.overlaps_evals": {
        True: "some rows are in the evaluation data too",
        False: "none of them in the evaluation data",
    },
}
"""Clauses of fields whose values each need words of their own. None: no longer known."""


def clause(field: str, value: Any, rough: bool = False) -> str:
    """Return a fact as a clause: ``27 rules must hold at once``, ``the facts change daily``.

    field: as evidence names it; of a data set's properties the kind may be anything: ``data.sft_pairs.rows``. rough:
    a number is the likeliest reading of words: ``about 300 rows``.
    """
    about = "about " if rough else ""
    first, *rest = field.split(".")
    if first == "data" and len(rest) == 1:
        return DATA[rest[0]] if value else f"no {DATA[rest[0]]}"  # type: ignore[index]
    if first == "tried":
        return f"{_TRIED.get(rest[0], rest[0])} was {'' if value else 'not '}tried"
    key = f"data.{rest[-1]}" if first == "data" else field
    if not isinstance(value, list) and value in _BY_VALUE.get(key, {}):
        return _BY_VALUE[key][value]
    if key in _COUNTED:
        one, several = _COUNTED[key]
        if rough and value == 1:
            return f"a few {several}"  # such words are "a rule or two"; "about 1" would be no number
        return f"{about}{value:,} {one if value == 1 else several}"
    return _CLAUSES.get(key, f"{field} is {{}}").format(about + _written(key, value))


def _written(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, str):
        if key == "requested":
            return METHODS.get(value, value)
        return _TERMS.get(value, value.replace("_", " ")) if key in _PLAIN else value
    if key in ("evals.baseline", "evals.target"):
        return score(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_count(value) if value >= 1000 else f"{value:g}"
    return str(value)


_PLAIN = ("task.type", "behaviour.target_capability")
"""Fields whose values are terms with underscores; other texts are names."""


def score(value: float) -> str:
    """Return a score as a percentage where it is a share: ``60 %``; else the number itself: ``34.5``."""
    return f"{100 * value:.4g} %" if 0 <= value <= 1 else f"{value:g}"


# Evidence


def quote_of(e: Evidence) -> Quote:
    """Return evidence as the quoted words that a reason rests on."""
    return Quote(fact=f"{e.field} = {value_of(e)}", quote=e.quote, span=e.span, source=source_of(e))


def source_of(e: Evidence) -> str:
    """Return the source of evidence, as a reader calls it: a file's line, description, answers."""
    named = {"text": "description", "model": "description", "answer": "answers"}
    return e.place or named.get(e.source, e.source)


def value_of(e: Evidence) -> str:
    """Return the value of evidence, with its standing in front where it is not simply so: ``(planned) 2000``."""
    standing = {"negated": "not ", "attributed": "(claimed by others) ", "planned": "(planned) "}.get(e.status, "")
    if isinstance(e.value, bool):
        return standing + str(e.value).lower()
    return standing + (f"{e.value:g}" if isinstance(e.value, float) else str(e.value))
