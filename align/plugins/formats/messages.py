"""``{"messages": [{"role": ..., "content": ...}, ...]}``: OpenAI's and TRL's conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class Messages(Format):
    """``{"messages": [{"role": str, "content": str}, ...]}``, the list also as a string of JSON.

    With a boolean ``label``, it judges the last message. With ``rejected_response`` (ms-swift: a string or messages),
    the last message is the chosen answer and that the rejected one.
    """

    name = "messages"
    shapes = (
        Shape("text", ("messages",)),
        Shape("unpaired", ("messages", "label")),
        Shape("preference", ("messages", "rejected_response"), optional=("margin",)),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation, which must have an assistant message; or its last message as the answer to the rest."""
        messages = fields.dialogue(row, "messages")
        if kind == "text":
            return {"text": messages}
        if kind == "unpaired":
            return {**fields.judged(messages, "messages"), "label": fields.boolean(row, "label")}
        answers = {"chosen": messages[-1:], "rejected": fields.content(row, "rejected_response")}
        return {**fields.join(messages[:-1], "messages", answers), "margin": fields.number(row, "margin")}
