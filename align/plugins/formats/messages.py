"""``{"messages": [{"role": ..., "content": ...}, ...]}``: OpenAI's and TRL's conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class Messages(Format):
    """``{"messages": [{"role": str, "content": str}, ...]}``, the list also as a string of JSON."""

    name = "messages"
    shapes = (Shape("text", ("messages",)),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation, in which the assistant must speak."""
        return {"text": fields.dialogue(row, "messages")}
