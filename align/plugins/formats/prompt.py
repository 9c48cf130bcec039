"""``{"prompt": ...}``: something to be answered (online learning)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class Prompt(Format):
    """``{"prompt": str or messages}``."""

    name = "prompt"
    shapes = (Shape("prompt", ("prompt",)),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The prompt, after which it is the assistant's turn."""
        return fields.join(fields.content(row, "prompt"), "prompt", {})
