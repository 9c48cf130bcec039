"""``{"text": "..."}``: plain text, all of which is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class Text(Format):
    """``{"text": str}``."""

    name = "text"
    shapes = (Shape("text", ("text",)),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The text."""
        return {"text": fields.string(row, "text")}
