"""Records: rows in one common form, whatever their format. Plain data, no torch.

A *row* is an object of a data file, with the keys of its format. A format plugin turns it into a *record*, with the
keys of this module. Content is either a string (standard) or a list of messages (conversational).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
"""``{"role": ..., "content": ...}`` and, where used, ``tool_calls``, ``name``, ``thinking``."""

Content = str | list[Message]
"""A prompt or completion: a string, or the messages of a conversation."""


class Arguments(dict[str, Any]):
    """A tool call's arguments that the row gives as a string of JSON: the object, with that string in ``text``.

    Some chat templates write the object and some the string.
    """

    text: str = ""

    @classmethod
    def parsed(cls, text: str, found: Mapping[str, Any]) -> Arguments:
        """Return the arguments ``found`` with the JSON ``text`` that they were parsed from."""
        made = cls(found)
        made.text = text
        return made


Kind = Literal["text", "prompt", "completion", "preference", "unpaired"]
"""The kind of a record, by its content.

text        one string or one conversation, all of it (pretrain) or its assistant turns (sft)
prompt      a prompt only (online learning)
completion  a prompt and its answer (sft)
preference  a prompt, a better and a worse answer, optionally by what margin (reward_model, dpo)
unpaired    a prompt, an answer and whether it is good (kto)
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One row in the common form. Fields that its kind does not use are None."""

    kind: Kind
    source: str
    """The origin of the row, ``train.jsonl:17``; error messages and samples quote it."""
    text: Content | None = None
    prompt: Content | None = None
    completion: Content | None = None
    chosen: Content | None = None
    rejected: Content | None = None
    label: bool | None = None
    margin: float | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row (``solution``, ``id``, ...), passed to rewards by name."""

    @property
    def conversational(self) -> bool:
        """True where the content is messages, to be rendered by a chat template."""
        first = self.text if self.kind == "text" else self.chosen if self.prompt is None else self.prompt
        return isinstance(first, list)
