"""``{"instruction": ..., "input": ..., "output": ...}``: Stanford Alpaca, with LLaMA-Factory's further columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.core.data.row_errors import RowError
from align.core.data.strict import a
from align.schemas.records import Kind, Message

_OPTIONAL = ("input", "history")


class Alpaca(Format):
    """``{"instruction": str, "input": str, "output": str}``, read as a conversation.

    The instruction and, below it, the input become one message of the user. ``history`` (pairs of an earlier message
    and its answer) comes first. With ``chosen`` and ``rejected`` in place of ``output`` it is a preference; with a
    boolean ``kto_tag``, an unpaired row; for a stage that learns from prompts, the prompt alone.
    """

    name = "alpaca"
    shapes = (
        Shape("prompt", ("instruction",), optional=_OPTIONAL),
        Shape("completion", ("instruction", "output"), optional=_OPTIONAL),
        Shape("preference", ("instruction", "chosen", "rejected"), optional=_OPTIONAL),
        Shape("unpaired", ("instruction", "output", "kto_tag"), optional=_OPTIONAL),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation up to the answer, and the answer or answers."""
        asked = [fields.string(row, "instruction"), fields.optional_string(row, "input")]
        prompt: list[Message] = _history(row)
        prompt.append({"role": "user", "content": "\n".join(filter(None, asked))})
        answers: dict[str, Any] = {}
        if kind == "preference":
            answers = {name: fields.content(row, name) for name in ("chosen", "rejected")}
        elif kind != "prompt":
            answers = {"completion": fields.string(row, "output")}
        called = "" if kind == "preference" else "output"
        found: dict[str, Any] = fields.join(prompt, "instruction", answers, called)
        return {**found, "label": fields.boolean(row, "kto_tag")} if kind == "unpaired" else found


def _history(row: Mapping[str, Any]) -> list[Message]:
    found: list[Message] = []
    for index, turn in enumerate(fields.structure(row, "history", list) or ()):
        where = f"history[{index}]"
        if not (isinstance(turn, list) and len(turn) == 2):
            raise RowError("wrong-type", f"is {a(turn)}, not a pair of what was said and answered", where)
        said = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)]
        found += fields.messages(said, where)
    return found
