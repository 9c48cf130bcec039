"""The axis of knowledge: nothing, retrieval, continual pre-training, or both."""

from __future__ import annotations

from align.rules import (
    CHANGING,
    TRAINING,
    DataKind,
    Facts,
    Thresholds,
    Vote,
    asked,
    enough,
    fits_prompt,
    format_count,
    has_goal,
    learnable,
    lookup_helps,
    purpose,
    requested_by_user,
    scorer,
    skill,
    tokens,
    tried,
    wants_behaviour,
)


def changing_facts(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-RAG-1: weights cannot follow facts that change monthly or faster.

    Soft where they change yearly, are more than a prompt holds, and no behaviour is wanted.
    """
    k = facts.project.knowledge
    behaviour = wants_behaviour(facts) or learnable(facts, limit)
    yearly = k.changes == "yearly" and not behaviour and not fits_prompt(facts, limit)
    if k.source == "none" or (k.changes not in CHANGING and not yearly):
        return None
    how = "all the time" if k.changes == "realtime" else k.changes
    because = f"the facts that answers need change {how}, so they have to be looked up when answering, not trained in"
    fields = ("knowledge.changes", "knowledge.source")
    return Vote("rag", "soft" if yearly else "hard", because, fields, "the facts never changed", "RAG")


def sources_shown(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-RAG-2: only what was looked up can be cited."""
    if not facts.project.knowledge.needs_citations:
        return None
    because = "answers must show where they come from, and trained weights cannot say"
    return Vote("rag", "hard", because, ("knowledge.needs_citations",), "no source had to be shown", "RAG")


def own_pages(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-RAG-3: answers out of one's own documents, of which there are too few to pre-train on.

    Soft where documents are not what is lacking: nobody says that answers are to come from them, or there is a skill
    that can be trained, with the data for it, or answers were measured to be better without them.
    """
    corpus, k = tokens(facts.data("corpus"), limit), facts.project.knowledge
    pages = "documents" in facts.kinds or corpus is not None
    asked_of = k.source == "proprietary" or facts.project.task.type == "qa"
    few = limit.corpus_tokens.below if _for_the_field(facts) else limit.corpus_tokens.warn
    # What is looked up today stays looked up, however much of it there is.
    retrieved = tried(facts, "rag") and k.source == "proprietary"
    large = (corpus or 0) >= few and k.unseen_domain is not False and not retrieved
    if k.source == "none" or large:
        return None
    if not pages and not (k.source == "proprietary" and (retrieved or not purpose(facts))):
        return None
    aim = has_goal(facts) or asked(facts, "continual_pretraining")
    if not asked_of and (not aim or wants_behaviour(facts) or learnable(facts, limit)):
        return None  # nobody says that answers come from these pages: they may as well be like the answers
    trainable = skill(facts) and (enough(facts, "sft_pairs", limit) or scorer(facts))
    because = "the answers are in your own documents, and retrieval gives them to the model without training"
    fields = ("data.documents", "knowledge.source", "data.corpus", "task.type", "tried.rag")
    flips = (
        f"there were {format_count(limit.corpus_tokens.warn)} tokens of it, from a field that the model has not seen"
    )
    weak = not asked_of or (trainable and not retrieved) or lookup_helps(facts.project.measured) is False
    return Vote("rag", "soft" if weak else "hard", because, fields, flips, "RAG")


def per_user(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-RAG-4: weights are the same for everybody."""
    if not facts.project.knowledge.per_user:
        return None
    because = "what an answer may contain depends on who asks, and weights are the same for everybody"
    return Vote("rag", "hard", because, ("knowledge.per_user",), "everybody were allowed to see everything", "RAG")


def unseen_field(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-CPT-1: a corpus of at least a billion tokens, of a field or language that the model has not seen.

    Where nobody says so, a first stage before examples is meant if nothing has to be looked up; else it is soft.
    """
    corpus, k = tokens(facts.data("corpus"), limit), facts.project.knowledge
    if corpus is None or corpus < limit.corpus_tokens.warn or k.unseen_domain is False:
        return None
    looked_up = k.needs_citations or k.per_user or k.changes in CHANGING
    meant = _for_the_field(facts) or (facts.coming("sft_pairs") is not None and not looked_up)
    if not meant and not has_goal(facts) and not tried(facts):
        return None  # a heap of text is no reason
    because = f"{format_count(corpus)} tokens of text are enough to change what a model knows"
    if k.unseen_domain:
        because += ", and it has hardly seen this field"
    fields = (
        "data.corpus.tokens",
        "data.corpus",
        "knowledge.unseen_domain",
        "task.type",
        "requested",
        "data.sft_pairs",
    )
    flips = f"there were fewer than {format_count(limit.corpus_tokens.warn)} tokens, or the model knew the field"
    return Vote("continual_pretraining", "hard" if meant else "soft", because, fields, flips, "CPT")


def _for_the_field(facts: Facts) -> bool:
    """Return whether a field is to be learned: unseen, the task itself, or pre-training is requested by the user."""
    requested = asked(facts, "continual_pretraining") and requested_by_user(facts)
    return _new_field(facts) or requested


def _new_field(facts: Facts) -> bool:
    return bool(facts.project.knowledge.unseen_domain) or facts.project.task.type == "domain_model"


def thin_corpus(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-CPT-2: the same with a tenth of a billion tokens or more: it may help a little."""
    corpus, k = tokens(facts.data("corpus"), limit), facts.project.knowledge
    floor = limit.corpus_tokens
    if corpus is None or not floor.below <= corpus < floor.warn or not _new_field(facts) or k.unseen_domain is False:
        return None
    because = f"{format_count(corpus)} tokens change what a model knows only a little; "
    because += f"published cases have {format_count(floor.comfortable)} or more"
    fields = ("data.corpus.tokens", "data.corpus", "knowledge.unseen_domain", "task.type")
    flips = f"there were fewer than {format_count(floor.below)} tokens, or retrieval answered as well"
    return Vote("continual_pretraining", "soft", because, fields, flips, "CPT")


def no_corpus(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-CPT-3: pre-training is ruled out below a tenth of a billion tokens."""
    wanted = asked(facts, "continual_pretraining", *TRAINING)
    kind: DataKind = "documents" if wanted and "corpus" not in facts.kinds else "corpus"
    text = tokens(facts.data(kind), limit)
    if text is None or text >= limit.corpus_tokens.below:
        return None
    because = (
        f"{format_count(text)} tokens are far too few to pre-train on: a model memorises them and learns little else"
    )
    flips = f"there were at least {format_count(limit.corpus_tokens.below)} tokens"
    return Vote("continual_pretraining", "veto", because, (f"data.{kind}",), flips, "CPT")


def already_pretrained(facts: Facts, limit: Thresholds) -> Vote | None:
    """R-CPT-4: a corpus that the model was pre-trained on teaches it little more."""
    if not facts.project.knowledge.pretraining_done:
        return None
    because = "the model was pre-trained on this corpus already"
    fields = ("knowledge.pretraining_done",)
    return Vote("continual_pretraining", "veto", because, fields, "it had not been", "CPT")
