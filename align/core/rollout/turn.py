"""How an answer reads: what the chat template has already written of the assistant's turn, and what was sampled after.

A template may open a thought in its generation prompt, after the header of the turn. The model goes on from there, so
its tokens hold ``</think>`` and no ``<think>``. Whoever reads the answer must see both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from align.core.data.doctor import Settings
from align.core.data.encode import Encoder
from align.core.data.guard import Refusal
from align.core.data.template import common_length, rendered
from align.schemas.records import Record

_PROBE = "align-looks-for-where-an-answer-begins"
_ANY = Settings(("prompt",), scores_prompt=False, reward=False, max_length=0, truncation="error", allow=frozenset())

_SECTION = re.compile(
    r"<(?P<tag>[A-Za-z_][\w-]*)>|\[(?P<bracket>[A-Z_]+)\]|(?P<harmony><\|channel\|>)|(?P<gemma><\|channel>)"
)
"""What opens a part of a turn: ``<think>``, Mistral's ``[THINK]``, gpt-oss's and Gemma's channels."""
_EMPTY = re.compile(r"\s*(?:<([A-Za-z_][\w-]*)>\s*</\1>|\[([A-Z_]+)\]\s*\[/\2\]|</[A-Za-z_][\w-]*>)\s*")
"""A part that is closed again and holds nothing, which is how templates say that there shall be no thinking."""


class Turns:
    """Reads the assistant's turns of one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder or Encoder(tokenizer)
        named = {self._encoder.variables.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
        special = {text: i for text, i in self._encoder.special.items() if text not in named}
        tags = {i for text, i in special.items() if _partner(text) in special}
        self._hidden = frozenset(self._encoder.special.values()) - tags

    def opening(self, record: Record) -> str:
        """Return what the generation prompt for ``record`` has already written of the answer, "" for nothing.

        An empty thought that the template also closes is no part of the answer: nothing is left to go on with.
        """
        if not record.conversational:
            return ""
        try:
            prompt, before = (rendered(record, self._encoder, _ANY, opens=opens) for opens in (True, False))
        except Refusal:  # no tokens could be made of it either
            return ""
        try:
            answer = [{"role": "assistant", "content": _PROBE}]
            header = rendered(record, self._encoder, _ANY, added=answer).rpartition(_PROBE)[0]
        except Refusal:
            header = ""
        return self._shown(opened(prompt, before, header))

    def text(self, tokens: Sequence[int], opening: str = "") -> str:
        """Return an answer as its turn reads: the opening, then what was sampled, without control tokens."""
        sampled = [i for i in tokens if i not in self._hidden]
        if not opening:
            return self._decode(sampled)
        # Decoded after its opening: some tokenizers take a space from what stands first.
        before = self._encoder.encode(opening).tolist()
        head, whole = self._decode(before), self._decode([*before, *sampled])
        return opening + (whole[len(head) :] if whole.startswith(head) else self._decode(sampled))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _shown(self, text: str) -> str:
        """A template's text without the tokens that ``text`` leaves out too."""
        hidden = self._hidden
        return self._encoder.spelt.sub(
            lambda found: "" if self._encoder.special[found[0]] in hidden else found[0], text
        )


def opened(prompt: str, before: str, header: str) -> str:
    """Return the part of a rendered prompt that belongs to the answer.

    prompt: with the generation prompt. before: without it. header: what stands before the words of an assistant who
    thinks nothing; "" where that is not known. Templates write an empty thought there of their own accord, so a part
    that begins in both belongs to the answer too.
    """
    base, start = common_length(prompt, before), common_length(prompt, header)
    if not header or (start < len(header) and start < base):  # unknown, or what is earlier reads differently there
        found = [match for match in _SECTION.finditer(prompt, base) if not prompt[match.end() :].strip()]
        start = found[0].start() if found and _closing(found[0]) else len(prompt)
    elif start < len(header):
        for match in _SECTION.finditer(prompt, base):
            cut_in_two = match.start() < start < match.end()
            if cut_in_two or (match.start() <= start and _closing(match) in header[match.start() :]):
                start = match.start()
                break
    answer = prompt[start:]
    while empty := _EMPTY.match(answer):
        answer = answer[empty.end() :]
    return answer if answer.strip() else ""


def _closing(section: re.Match[str]) -> str:
    """What closes a part of a turn; a channel's name ends with the message that it opens."""
    if section["tag"]:
        return f"</{section['tag']}>"
    if section["bracket"]:
        return f"[/{section['bracket']}]"
    return "<|message|>" if section["harmony"] else "<channel|>"


def _partner(text: str) -> str:
    """The closing tag of an opening one, and the other way round; "" for what is no tag."""
    match = re.fullmatch(r"<(/?)([A-Za-z_][\w-]*)>|\[(/?)(THINK)\]", text)
    if match is None:
        return ""
    slash, name = match[1] or match[3] or "", match[2] or match[4]
    return text.replace(slash + name, name if slash else f"/{name}")
