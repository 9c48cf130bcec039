"""``{"conversations": [{"from": "human", "value": ...}, ...]}``: ShareGPT, as axolotl and LLaMA-Factory read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.data import fields
from align.core.data.faults import RowError
from align.core.data.formats import Format, Shape
from align.core.data.strict import a
from align.schemas.errors import did_you_mean
from align.schemas.records import Kind, Message

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class ShareGPT(Format):
    """``{"conversations": [{"from": str, "value": str}, ...], "system": str}``; ``role`` and ``content`` also serve.

    A ``function_call`` turn holds JSON with ``name`` and ``arguments`` and becomes a tool call. With ``chosen`` and
    ``rejected`` (one turn each) the conversation is their prompt; with ``kto_tag`` its last turn is what is judged.
    """

    name = "sharegpt"
    shapes = (
        Shape("text", ("conversations",), optional=("system",)),
        Shape("preference", ("conversations", "chosen", "rejected"), optional=("system",)),
        Shape("unpaired", ("conversations", "kto_tag"), optional=("system",)),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation, or what was said before the answers, and those."""
        said = _turns(fields.structure(row, "conversations", list), "conversations")
        if system := fields.optional_string(row, "system"):
            said = [{"role": "system", "content": system}, *said]
        if kind == "text":
            return {"text": fields.answered(said, "conversations")}
        if kind == "preference":
            answers = {name: _turns(row[name], name) for name in ("chosen", "rejected")}
            return fields.join(said, "conversations", answers)
        if len(said) < 2:
            raise RowError("message-order", "has no answer after a prompt", "conversations")
        found: dict[str, Any] = fields.join(said[:-1], "conversations", {"completion": said[-1:]})
        return {**found, "label": fields.boolean(row, "kto_tag")}


def _turns(value: Any, field: str) -> list[Message]:
    turns = [value] if isinstance(value, dict) else value
    if turns is None:
        raise RowError("null", "is null", field)
    if not isinstance(turns, list):
        raise RowError("wrong-type", f"is {a(turns)}, not a list of turns", field)
    if any(isinstance(turn, dict) and "role" in turn and "from" not in turn for turn in turns):
        return fields.messages(turns, field)
    return fields.messages([_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)], field, ("from", "value"))


def _turn(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict):
        return turn
    speaker = turn.get("from")
    if not isinstance(speaker, str):
        kind, what = (
            ("wrong-type", f"is {a(speaker)}, not a string") if "from" in turn else ("missing-field", "is missing")
        )
        raise RowError(kind, what, f"{where}.from")
    if speaker not in _ROLES:
        raise RowError("unknown-role", f"is {ascii(speaker)[:40]}; {did_you_mean(speaker, _ROLES)}", f"{where}.from")
    message = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        call = fields.structure({f"{where}.value": turn.get("value")}, f"{where}.value", dict)
        return {**message, "role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    return {"role": _ROLES[speaker], **({"content": turn["value"]} if "value" in turn else {}), **message}
