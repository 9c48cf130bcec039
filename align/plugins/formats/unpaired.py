"""``{"prompt": ..., "completion": ..., "label": true}``: an answer and whether it is good (KTO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind


class Unpaired(Format):
    """``{"prompt": str or messages, "completion": str or messages, "label": bool}``."""

    name = "unpaired"
    shapes = (Shape("unpaired", ("prompt", "completion", "label")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Prompt, completion and label."""
        completion = fields.content(row, "completion")
        found = fields.join(fields.content(row, "prompt"), "prompt", {"completion": completion})
        return {**found, "label": fields.boolean(row, "label")}
