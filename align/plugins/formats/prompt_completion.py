"""``{"prompt": ..., "completion": ...}``: a prompt and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class PromptCompletion(Format):
    """``{"prompt": str or messages, "completion": str or messages}``."""

    name = "prompt-completion"
    shapes = (Shape("completion", ("prompt", "completion")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Prompt and completion."""
        completion = fields.content(row, "completion")
        return fields.join(fields.content(row, "prompt"), "prompt", {"completion": completion})
