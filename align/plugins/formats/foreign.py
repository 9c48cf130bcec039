"""``{"conversations": [{"from": "human", "value": ...}, ...]}``: ShareGPT, as axolotl and LLaMA-Factory read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind, Message

_PAIRS = (("human", "assistant"), ("input", "output"))
"""Names of the two sides of a round in ms-swift and in Capybara."""


class ShareGPT(Format):
    """``{"conversations": [{"from": str, "value": str}, ...]}``; ``role`` and ``content`` also serve.

    A ``function_call`` turn holds JSON with ``name`` and ``arguments`` and becomes a tool call. With ``chosen`` and
    ``rejected`` (one turn each) the conversation is their prompt; ``kto_tag`` or ``label`` judges its last turn.
    ``conversation`` may also hold rounds, ``[{"human": str, "assistant": str}, ...]``.
    """

    name = "sharegpt"
    shapes = (
        Shape("text", ("conversations",), unless=("chosen", "rejected")),
        Shape("text", ("conversation",)),
        Shape("preference", ("conversations", "chosen", "rejected")),
        Shape("unpaired", ("conversations", "kto_tag")),
        Shape("unpaired", ("conversations", "label")),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation, or a prompt and its answers."""
        if kind == "preference":
            answers = {name: fields.turns(row, name) for name in ("chosen", "rejected")}
            return fields.join(fields.turns(row, "conversations"), "conversations", answers)
        key = "conversations" if row.get("conversations") is not None else "conversation"
        messages = fields.answered(_rounds(row, key) or fields.turns(row, key), key)
        if kind == "text":
            return {"text": messages}
        tag = "kto_tag" if row.get("kto_tag") is not None else "label"
        return {**fields.judged(messages, key), "label": fields.boolean(row, tag)}


def _rounds(row: Mapping[str, Any], key: str) -> list[Message]:
    """Return the messages of a list of rounds; none where the column holds no such list."""
    for pair in _PAIRS:
        if isinstance(row[key], list) and all(isinstance(item, dict) and item.keys() >= {*pair} for item in row[key]):
            turns = [
                {"role": role, "content": item[side]}
                for item in row[key]
                for role, side in zip(("user", "assistant"), pair, strict=True)
            ]
            return fields.messages(turns, key) if turns else []
    return []
