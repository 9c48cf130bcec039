"""``{"query": ..., "tools": ..., "answers": [{"name": ..., "arguments": ...}]}``: xLAM's calls of functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.core.data.row_errors import RowError
from align.schemas.records import Kind


class XLAM(Format):
    """``{"query": str, "tools": list, "answers": list of calls}``, the lists also as strings of JSON.

    The query becomes the user's message, the answers become the assistant's calls.
    """

    name = "xlam"
    shapes = (Shape("completion", ("query", "tools", "answers")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The query, and one message with all calls."""
        calls = fields.structure(row, "answers", list)
        if not calls:
            raise RowError("empty", "has no calls", "answers")
        try:
            [answer] = fields.messages([{"role": "assistant", "tool_calls": calls}], "")
        except RowError as error:
            _, _, inside = error.field.partition("tool_calls")
            raise RowError(error.kind, error.what, f"answers{inside}") from None
        prompt = [{"role": "user", "content": fields.string(row, "query")}]
        return fields.join(prompt, "query", {"completion": [answer]}, "answers")
