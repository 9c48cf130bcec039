"""Rules on measurements. Overlapping intervals decide nothing; then the number of rows that would is reported."""

from __future__ import annotations

from collections.abc import Iterator

from align.rules import (
    Ask,
    Facts,
    RuleResult,
    Thresholds,
    Vote,
    Warn,
    apart,
    best_prompt,
    lookup_helps,
    rescaled,
    rows_to_settle,
    target,
)


def prompt_reaches_target(facts: Facts, limit: Thresholds) -> Iterator[RuleResult]:
    """R-MEA-1: whether the untouched model, prompted, is at the target."""
    best, wanted = best_prompt(facts.project.measured), target(facts.project)
    if best is None or wanted is None:
        return
    fields = ("measured.zero_shot", "measured.few_shot", "evals.target")
    if best.low >= wanted:
        because = f"the untouched model reaches the target as it is: {best}, wanted {wanted:.3g}"
        yield Vote("prompting", "hard", because, fields, f"the target were above {best.high:.3g}", "PROMPT")
    elif best.high >= wanted:
        yield _ask(
            "prompt", "evals.held_out_rows", "whether prompting reaches the target", rows_to_settle(best, wanted)
        )


def open_book_helps(facts: Facts, limit: Thresholds) -> Iterator[RuleResult]:
    """R-MEA-2: the same questions with and without passages that BM25 finds."""
    closed, opened = facts.project.measured.closed_book, facts.project.measured.open_book
    if closed is None or opened is None:
        return
    helps = lookup_helps(facts.project.measured)
    if helps:
        because = f"looking up passages raises the score from {closed} to {opened}"
        fields = ("measured.open_book", "measured.closed_book")
        yield Vote("rag", "hard", because, fields, "answers did not depend on what the documents say", "RAG")
    elif helps is False:
        text = f"passages lower the score from {closed} to {opened}: look at what is found before building on it"
        yield Warn("retrieval_lowers", text, ("measured.open_book", "measured.closed_book"))
    else:
        yield _ask("retrieval", "evals.held_out_rows", "whether retrieval helps", rows_to_settle(opened, closed))


def domain_is_unseen(facts: Facts, limit: Thresholds) -> Iterator[RuleResult]:
    """R-MEA-3: whether the corpus is far from ordinary text; the fact itself is ``knowledge.unseen_domain``."""
    corpus, reference = facts.project.measured.corpus_bits, facts.project.measured.reference_bits
    if corpus is None or reference is None:
        return
    far = rescaled(reference, limit.unseen_bits_ratio)
    if apart(corpus, far) == 0:
        yield _ask(
            "domain", "knowledge.unseen_domain", "whether the domain is new to the model", rows_to_settle(corpus, far)
        )


def head_room(facts: Facts, limit: Thresholds) -> Iterator[RuleResult]:
    """R-MEA-4: what several tries find and one misses is what learning from rewards can gain (2504.13837)."""
    found = facts.project.measured
    first, best, flat = found.pass_1, found.pass_k, found.flat_groups
    if first is None or best is None:
        return
    fields = ("measured.pass_1", "measured.pass_k")
    if best.high < limit.solvable_share:
        text = f"hardly any prompt is ever solved ({best}): fine-tune on answers first, or ask easier questions"
        yield Warn("no_headroom", text, fields)
    elif first.low > 1 - limit.solvable_share:
        text = f"nearly every answer is right already ({first}): ask harder questions"
        yield Warn("no_headroom", text, fields)
    elif flat is not None and flat.low > limit.flat_share:
        text = f"the answers to most prompts all score alike ({flat}), so rewards teach nothing there"
        yield Warn("no_headroom", text, ("measured.flat_groups",))
    elif apart(best, first) > 0:
        because = f"several tries find answers that one misses: {first} with one, {best} with several"
        yield Vote("post_training", "soft", because, fields, "one try were as good as several", "ALG_RL")
    else:
        yield _ask(
            "headroom",
            "data.prompts",
            "whether there is head-room for learning from rewards",
            rows_to_settle(best, first),
        )


def already_preferred(facts: Facts, limit: Thresholds) -> Iterator[RuleResult]:
    """R-MEA-5: pairs that the model ranks as wanted already teach it little."""
    agreed = facts.project.measured.prefers_chosen
    if agreed is not None and agreed.low > 1 - limit.solvable_share:
        text = f"the better answer is the likelier one already, in {agreed} of the pairs: harder pairs teach more"
        yield Warn("little_to_learn", text, ("measured.prefers_chosen",))


def _ask(probe: str, field: str, what: str, rows: int | None) -> Ask:
    settle = f"about {rows:,} rows would show it" if rows is not None else "no number of rows would: they are equal"
    return Ask(
        f"measure_{probe}", field, f"The measurements do not show {what}; {settle}. Can you measure on more?", what
    )
