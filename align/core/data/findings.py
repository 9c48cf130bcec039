"""What the template doctor can find: each id, how bad it is, its sentence, its mend, and what accepting it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Entry(NamedTuple):
    """What an id means. ``accepted`` says what align does with such rows once the id is in ``data.allow``."""

    level: Literal["error", "warning"]
    what: str
    mend: str
    accepted: str


LEFT_OUT = "the rows are left out"
KEPT = "the rows are learned from as they are"

CATALOGUE: Mapping[str, Entry] = {
    "wrong-kind": Entry(
        "error",
        "the row holds nothing that this algorithm learns from",
        "choose an algorithm for such rows, or rename the columns with data.train[].columns",
        LEFT_OUT,
    ),
    "fractional-weight": Entry(
        "error",
        "a message has a weight other than 0 and 1, and this algorithm compares whole answers",
        "give each message weight 0 (read, not learned) or 1 (learned); sft and pretrain take weights between them",
        LEFT_OUT,
    ),
    "bad-unicode": Entry("error", "the text is not valid Unicode", "fix the text where it was written", LEFT_OUT),
    "text-too-long": Entry("error", "the text is too long to be tokenised", "split it into several rows", LEFT_OUT),
    "no-chat-template": Entry(
        "error",
        "the row is a conversation and the tokenizer has no chat template",
        "name a Jinja file in model.chat_template, or start from a model that has a template",
        LEFT_OUT,
    ),
    "no-eos": Entry(
        "error",
        "the tokenizer has no eos token, so the model cannot learn where an answer ends",
        "set eos_token in the model's tokenizer_config.json",
        KEPT,
    ),
    "template-failed": Entry(
        "error",
        "the chat template refuses the row",
        "change the row to what the template takes, or give another template in model.chat_template",
        LEFT_OUT,
    ),
    "prompt-not-prefix": Entry(
        "error",
        "the chat template writes the prompt one way alone and another way when an answer follows, so the model would "
        "learn after other tokens than it will see",
        "use a template (model.chat_template) that writes a prompt the same way in both cases",
        "the answer starts where the two ways part, as in TRL",
    ),
    "turn-not-prefix": Entry(
        "error",
        "the chat template writes this turn otherwise once more turns follow, so what the assistant said there cannot "
        "be told from what it was given",
        "put {% generation %} and {% endgeneration %} around the assistant's text in the template "
        "(model.chat_template)",
        "each answer becomes an example of its own, after the turns before it as the template then writes them",
    ),
    "text-lost": Entry(
        "error",
        "the chat template leaves out text of the row, or changes it",
        "use a template (model.chat_template) that writes such a row whole, with its roles, its tool calls and content "
        "that is a string; or take the text out of the row",
        KEPT,
    ),
    "reasoning-lost": Entry(
        "error",
        "the chat template leaves out the assistant's reasoning",
        "use a template (model.chat_template) that writes it, with the field's name that the template knows "
        "(reasoning_content, reasoning, thinking), or take it out of the row",
        KEPT,
    ),
    "boundary-merge": Entry(
        "error",
        "the end of the prompt and the start of the answer merge into one token, which the model never sees when it "
        "is given the prompt alone",
        "end prompts without whitespace and begin answers with it (or neither)",
        "prompt and answer are tokenised apart",
    ),
    "double-bos": Entry(
        "error",
        "the sequence starts with two beginning-of-text tokens",
        "take bos_token out of the chat template or out of the text",
        KEPT,
    ),
    "end-of-turn-untrained": Entry(
        "error",
        "no token that ends a turn is learned at the end of the answer, so the model would never stop",
        "let the chat template close the assistant's turn with an end-of-turn token, before {% endgeneration %}",
        KEPT,
    ),
    "empty-mask": Entry(
        "error", "no token of the row carries loss", "give it an assistant turn or an answer", LEFT_OUT
    ),
    "full-mask": Entry(
        "error",
        "text of others than the assistant carries loss",
        "put {% generation %} and {% endgeneration %} around the assistant's text only",
        KEPT,
    ),
    "truncation": Entry(
        "error",
        "longer than data.max_length",
        "raise data.max_length, or choose data.truncation: drop, keep_start, keep_end (or split, for text)",
        "the rows are kept whole",
    ),
    "special-token-unclear": Entry(
        "error",
        "the row spells a special token where the model's own format may be meant, in an assistant's message or in a "
        "string; it would be learned as ordinary text, not as that token",
        "name the tokens that are meant in data.special_tokens",
        "the spelling stays text",
    ),
    "special-token-in-text": Entry(
        "warning",
        "the row's text spells a special token; it is learned as ordinary text, not as that token",
        "nothing need be done, unless the token is meant: then name it in data.special_tokens",
        "in rows that are strings every spelling becomes its token; in messages it stays text",
    ),
    "special-token-meant": Entry(
        "warning",
        "the row spells special tokens that data.special_tokens names; they are learned as those tokens",
        "nothing need be done",
        KEPT,
    ),
    "end-of-turn-not-eos": Entry(
        "warning",
        "answers end with another token than the tokenizer's eos",
        "see that the model's generation_config.json lists it in eos_token_id, or generation will not stop there",
        KEPT,
    ),
    "history-dropped": Entry(
        "warning",
        "the chat template leaves the assistant's reasoning of earlier turns out of the prompt, as it does when the "
        "model is used",
        "nothing need be done, unless the model is to see it: then use another template (model.chat_template)",
        KEPT,
    ),
    "tools-dropped": Entry(
        "warning",
        "the chat template does not write the row's tools, so the model does not see what it learns to call",
        "use a template (model.chat_template) that writes tools",
        KEPT,
    ),
    "identical-pair": Entry(
        "warning", "the chosen and the rejected answer are the same tokens", "leave such pairs out", KEPT
    ),
    "eos-is-pad": Entry(
        "warning",
        "the pad token is the eos token: align still learns it (padding is masked by position); other tools may not",
        "give the tokenizer a pad token of its own",
        KEPT,
    ),
    "template-dated": Entry(
        "warning",
        "the chat template writes today's date into the prompt, so the same rows give other tokens on another day",
        "fix the date in the template, or in each row's chat_template_kwargs",
        KEPT,
    ),
}

TRUNCATED: Mapping[str, str] = {
    "drop": "longer than data.max_length: left out",
    "keep_start": "longer than data.max_length: the end is cut off, and with it the token that ends the answer",
    "keep_end": "longer than data.max_length: the start is cut off",
    "split": "longer than data.max_length: split into blocks",
}
"""What happens to long rows where the run file asks for it; then truncation is a warning."""
