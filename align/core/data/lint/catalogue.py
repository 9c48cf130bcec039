"""What the data lints can find: each id, how bad it is, its sentence and its fix. docs/data_checks.md lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Entry(NamedTuple):
    """What an id means. what: with ``{counted}`` for "3 of 40 rows (7.5%)".

    loud_from: below this share it is a note.
    """

    level: Literal["error", "warning", "note"]
    what: str
    fix: str
    loud_from: float = 0.0


CATALOGUE: Mapping[str, Entry] = {
    # what any row may have
    "exact-duplicates": Entry(
        "warning",
        "{counted} say what an earlier row says, but for case, width and white space",
        "leave them out: what is repeated is learned by heart first",
    ),
    "near-duplicates": Entry(
        "warning",
        "{counted} are nearly another row (three words in a row: about {threshold:.0%} the same; {looked_at})",
        "keep one of each, or see that they differ where it matters",
    ),
    "no-words": Entry("warning", "{counted} have a text or an answer without a letter or a digit", "leave them out"),
    "mojibake": Entry(
        "warning",
        "{counted} hold text that was decoded with the wrong character set (Ã© for é)",
        "decode it again where it came from; `ftfy` fixes most of what is left",
    ),
    "replacement-characters": Entry(
        "warning", "{counted} hold U+FFFD, which stands for what was lost in decoding", "decode it again at its source"
    ),
    "control-characters": Entry(
        "warning",
        "{counted} hold control characters, or marks that turn the direction of writing around",
        "take them out, unless the model is to write them",
    ),
    "template-tokens": Entry(
        "warning",
        "{counted} spell tokens of a chat template in their text",
        "take them out: the template adds its own; give conversations as messages",
    ),
    "language-mix": Entry(
        "note",
        "rows are in several languages: {languages} (of {of:,} distinct rows looked at)",
        "nothing need be done where that is wanted; else leave the others out",
    ),
    "over-max-length": Entry(
        "warning",
        "{counted} have more than {max_length:,} tokens, the chat template's own not counted",
        "raise the length, split them, or leave them out; what is cut off is not learned",
    ),
    "pii": Entry(
        "warning",
        "{counted} hold what looks like personal data: {by_kind}",
        "take it out or put placeholders in: models repeat what they were trained on; see that you may use it",
    ),
    "secrets": Entry(
        "error",
        "{counted} hold what looks like keys or passwords: {by_kind}",
        "revoke them, and leave these rows out or put placeholders in",
    ),
    "answer-in-prompt": Entry(
        "warning",
        "{counted} have their answer, word for word, in their prompt",
        "see whether the answer leaks; for extracting and rewriting it is as it should be",
    ),
    "one-source": Entry(
        "note", "{counted} come from one source, {value!a}", "know it: what is odd there will be learned"
    ),
    "no-licence": Entry("note", "no column says under which licence the rows are", "write it down where you know it"),
    "licence-restricts": Entry(
        "warning",
        "{counted} are under a licence that is unknown or forbids uses: {licences}",
        "see whether it allows what you mean to do",
    ),
    "few-rows": Entry(
        "warning",
        "rows: {count:,}; fewer than {floor:,} of this kind are not known to change a model for the better",
        "gather more, or put these into the prompt",
    ),
    "eval-overlap-exact": Entry(
        "error",
        "{counted} ask what an evaluation asks: {suites}",
        "leave them out: a score on what was trained on says nothing",
    ),
    "eval-overlap-ngram": Entry(
        "error",
        "{counted} hold more than half of an evaluation's prompt, in runs of {n} words: {suites}",
        "leave them out: a score on what was trained on says nothing",
    ),
    "held-out-overlap": Entry(
        "warning",
        "{counted} are held out and learned from as well",
        "leave them out of one of the two: how well they are known says nothing of other rows",
    ),
    # answers
    "no-user": Entry("warning", "{counted} are conversations in which no user speaks", "give them a user's turn"),
    "some-system": Entry(
        "note",
        "{counted} have a system message, the others have none",
        "train as you will ask: with the system message that will be used, or without",
    ),
    "ends-without-answer": Entry(
        "warning", "{counted} end with another turn than the assistant's", "cut them after the last answer"
    ),
    "roles-repeat": Entry(
        "warning", "{counted} have two turns of one role in a row", "join them; many templates refuse such rows"
    ),
    "unknown-message-key": Entry(
        "note", "{counted} have messages with keys that nobody reads: {keys}", "leave them out, or spell them as read"
    ),
    "refusals": Entry(
        "warning",
        "{counted} refuse to answer",
        "see that the model is to refuse as often as that; it learns the share, not only the cases",
        loud_from=0.05,
    ),
    "cut-off": Entry(
        "warning",
        "{counted} have an answer that breaks off: amid a sentence, or within a block of code",
        "raise the limit they were made with, or leave them out: the model learns to stop there",
    ),
    "contradictory-answers": Entry(
        "warning",
        "{counted} have a short answer where the same prompt has another one elsewhere",
        "decide which is right",
    ),
    "repeated-prompts": Entry(
        "note",
        "{counted} have a prompt that an earlier row has, with another answer",
        "nothing need be done where several answers were sampled on purpose",
    ),
    # preferences
    "same-answers": Entry(
        "warning",
        "{counted} have answers that differ in nothing but case, width and white space",
        "leave them out: their loss stays at ln 2 = 0.693 or teaches white space",
    ),
    "contradictory-pairs": Entry(
        "warning", "{counted} prefer what another row of the same prompt rejects", "decide which is better"
    ),
    "length-bias": Entry(
        "warning",
        "the chosen answer is the longer one in {counted}: "
        "{chosen_mean:.0f} words against {rejected_mean:.0f} on average",
        "balance the lengths, or choose a loss that takes length out; else length is what is learned",
    ),
    "same-opening": Entry(
        "warning",
        "{counted} have answers whose first {n} words are the same",
        "what is shared teaches nothing, and pairs that hardly differ can lower the chosen answer too",
        loud_from=0.5,
    ),
    "separable": Entry(
        "warning",
        "one thing seen from outside tells chosen from rejected in {counted} looked at: {feature}",
        "see whether this is what is to be learned; the loss will fall to nothing on it alone",
    ),
    "ties": Entry(
        "warning", "{counted} have a margin of zero or less", "leave ties out, and turn negative ones around"
    ),
    "no-label-source": Entry("note", "no column says who judged", "write down whether people or which model did"),
    # single answers with a label
    "one-label": Entry(
        "error", "all {of:,} rows are labelled {label}: there is nothing to tell apart", "add rows of the other label"
    ),
    "labels-unbalanced": Entry(
        "warning",
        "{counted} are labelled true",
        "weigh the rarer label (desirable_weight or undesirable_weight) until the sums are as 1 to 1 or 1 to 1.5",
    ),
    # plain text
    "boilerplate": Entry(
        "warning",
        "{counted} stand in many documents (at least {floor:,}): headers, footers, notices",
        "take such lines out: they are learned best and mean least",
    ),
    "low-quality": Entry(
        "warning",
        "{counted} look like no prose: too few letters, words too short or long, or hardly any words among signs",
        "read some, and leave them out unless tables, logs or code are what is to be learned",
        loud_from=0.01,
    ),
    "short-documents": Entry(
        "note", "{counted} have under {floor} words", "join what belongs together, or leave them out"
    ),
    "fertility": Entry(
        "warning",
        "a word takes {fertility:.2f} tokens on average: the tokenizer does not know this language or domain well",
        "choose a model whose tokenizer does, or reckon with longer sequences",
    ),
}
