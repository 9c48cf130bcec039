"""What measurements say. Where two intervals overlap nothing is concluded, but how many rows would settle it."""

from __future__ import annotations

from collections.abc import Iterator

from align.advisor.facts import Facts
from align.advisor.measured import apart, best_prompt, rows_to_settle
from align.advisor.rule import Ask, Finding, Outcome, Warn
from align.advisor.thresholds import Thresholds
from align.schemas.project import Measurement


def prompt_reaches_target(facts: Facts, limit: Thresholds) -> Iterator[Outcome]:
    """R-MEA-1: the untouched model, prompted, at the target or not."""
    best, target = best_prompt(facts.project.measured), facts.project.evals.target
    if best is None or target is None:
        return
    fields = ("measured.zero_shot", "measured.few_shot", "evals.target")
    if best.low >= target:
        yield Finding(
            "prompting",
            "hard",
            f"the untouched model reaches the target as it is: {_told(best)}, wanted {target:.3g}",
            fields,
            f"the target is above {best.high:.3g}",
            "PROMPT",
        )
    elif best.high >= target:
        yield _ask("evals.held_out_rows", "whether prompting reaches the target", rows_to_settle(best, target))


def open_book_helps(facts: Facts, limit: Thresholds) -> Iterator[Outcome]:
    """R-MEA-2: the same questions with and without passages that BM25 finds."""
    closed, opened = facts.project.measured.closed_book, facts.project.measured.open_book
    if closed is None or opened is None:
        return
    side = apart(opened, closed)
    if side > 0:
        yield Finding(
            "rag",
            "hard",
            f"looking up passages raises the score from {_told(closed)} to {_told(opened)}",
            ("measured.open_book", "measured.closed_book"),
            "the answers stop depending on what the documents say",
            "RAG",
        )
    elif side == 0:
        yield _ask("data.eval_set", "whether retrieval helps", rows_to_settle(opened, closed))


def domain_is_unseen(facts: Facts, limit: Thresholds) -> Iterator[Outcome]:
    """R-MEA-3: whether the corpus is far from ordinary text; the fact itself is ``knowledge.unseen_domain``."""
    corpus, reference = facts.project.measured.corpus_bits, facts.project.measured.reference_bits
    if corpus is None or reference is None:
        return
    far = reference.model_copy(update={k: getattr(reference, k) * limit.unseen_bits_ratio for k in _BOUNDS})
    if apart(corpus, far) == 0:
        yield _ask("data.corpus", "whether the domain is new to the model", rows_to_settle(corpus, far))


def head_room(facts: Facts, limit: Thresholds) -> Iterator[Outcome]:
    """R-MEA-4: what sampling finds that a single answer misses is what learning from rewards can gain."""
    first, best = facts.project.measured.pass_1, facts.project.measured.pass_k
    if first is None or best is None:
        return
    fields = ("measured.pass_1", "measured.pass_k", "measured.flat_groups")
    if best.high < limit.solvable_share:
        text = f"hardly any prompt is ever solved ({_told(best)}): fine-tune on answers first, or ask easier questions"
        yield Warn("no_headroom", text, fields)
    elif first.low > 1 - limit.solvable_share:
        yield Warn(
            "no_headroom", f"nearly every answer is right already ({_told(first)}): ask harder questions", fields
        )
    elif apart(best, first) > 0:
        yield Finding(
            "post_training",
            "soft",
            f"the model finds answers that it does not give first: {_told(first)} at one try, {_told(best)} at several",
            fields[:2],
            "one try were as good as several",
            "ALG_RL",
        )
    else:
        yield _ask("data.prompts", "whether there is head-room for learning from rewards", rows_to_settle(best, first))


def already_preferred(facts: Facts, limit: Thresholds) -> Iterator[Outcome]:
    """R-MEA-5: pairs that the model ranks as wanted already teach it little."""
    agreed = facts.project.measured.prefers_chosen
    if agreed is not None and agreed.low > 1 - limit.solvable_share:
        text = f"the better answer is the likelier one already, in {_told(agreed)} of the pairs: harder pairs teach more"
        yield Warn("little_to_learn", text, ("measured.prefers_chosen",))


_BOUNDS = ("value", "low", "high")


def _told(m: Measurement) -> str:
    return f"{m.value:.3g} ({m.low:.3g} to {m.high:.3g}, {m.rows} rows)"


def _ask(field: str, what: str, rows: int | None) -> Ask:
    settle = f"about {rows:,} rows would settle it" if rows is not None else "no number of rows would: they are equal"
    return Ask("evals", field, f"the measurements do not tell {what}; {settle}: can you measure on more?", what)
