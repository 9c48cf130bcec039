"""Rows as other projects lay them out: ShareGPT and Alpaca (axolotl, LLaMA-Factory), xLAM, veRL, OpenRLHF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align import Format, Kind, Message, Record, Shape, formats
from align.formats import RowError, describe_type

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
            answers = {name: formats.turns(row, name) for name in ("chosen", "rejected")}
            return formats.join(formats.turns(row, "conversations"), "conversations", answers)
        key = "conversations" if row.get("conversations") is not None else "conversation"
        messages = formats.answered(_rounds(row, key) or formats.turns(row, key), key)
        if kind == "text":
            return {"text": messages}
        tag = "kto_tag" if row.get("kto_tag") is not None else "label"
        return {**formats.judged(messages, key), "label": formats.boolean(row, tag)}


def _rounds(row: Mapping[str, Any], key: str) -> list[Message]:
    """Return the messages of a list of rounds; none where the column holds no such list."""
    for pair in _PAIRS:
        if isinstance(row[key], list) and all(isinstance(item, dict) and item.keys() >= {*pair} for item in row[key]):
            turns = [
                {"role": role, "content": item[side]}
                for item in row[key]
                for role, side in zip(("user", "assistant"), pair, strict=True)
            ]
            return formats.messages(turns, key) if turns else []
    return []


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
        texts = [formats.string(row, "instruction"), formats.optional_string(row, "input")]
        prompt: list[Message] = _history(row)
        prompt.append({"role": "user", "content": "\n".join(filter(None, texts))})
        answers: dict[str, Any] = {}
        if kind == "preference":
            answers = {name: formats.content(row, name) for name in ("chosen", "rejected")}
        elif kind != "prompt":
            answers = {"completion": formats.string(row, "output")}
        called = "" if kind == "preference" else "output"
        found: dict[str, Any] = formats.join(prompt, "instruction", answers, called)
        return {**found, "label": formats.boolean(row, "kto_tag")} if kind == "unpaired" else found


def _history(row: Mapping[str, Any]) -> list[Message]:
    found: list[Message] = []
    for index, turn in enumerate(formats.structure(row, "history", list) or ()):
        where = f"history[{index}]"
        if not (isinstance(turn, list) and len(turn) == 2):
            raise RowError("wrong-type", f"is {describe_type(turn)}, not a pair of a prompt and its completion", where)
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)]
        found += formats.messages(messages, where)
    return found


class XLAM(Format):
    """``{"query": str, "tools": list, "answers": list of calls}``, the lists also as strings of JSON.

    The query becomes the user's message, the answers become the assistant's calls.
    """

    name = "xlam"
    shapes = (Shape("completion", ("query", "tools", "answers")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The query, and one message with all calls."""
        calls = formats.structure(row, "answers", list)
        if not calls:
            raise RowError("empty", "has no calls", "answers")
        try:
            [answer] = formats.messages([{"role": "assistant", "tool_calls": calls}], "")
        except RowError as error:
            _, _, inside = error.field.partition("tool_calls")
            raise RowError(error.kind, error.what, f"answers{inside}") from None
        prompt = [{"role": "user", "content": formats.string(row, "query")}]
        return formats.join(prompt, "query", {"completion": [answer]}, "answers")


class Verl(Format):
    """``{"data_source": str, "prompt": messages, "reward_model": {"style": str, "ground_truth": ...}, ...}``.

    All columns are passed on; ``reward_model.ground_truth`` also as ``solution``, which rewards look for.
    """

    name = "verl"
    shapes = (Shape("prompt", ("data_source", "prompt", "reward_model"), kept=("data_source", "reward_model")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The prompt."""
        if not isinstance(row["reward_model"], dict):
            raise RowError("wrong-type", f"is {describe_type(row['reward_model'])}, not an object", "reward_model")
        return formats.join(formats.content(row, "prompt"), "prompt", {})

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """Convert as every format does; the ground truth becomes the column ``solution``."""
        record = super().convert(row, source)
        if "ground_truth" not in row["reward_model"]:
            return record
        return replace(record, columns={"solution": row["reward_model"]["ground_truth"], **record.columns})


class OpenRLHF(Format):
    """``{"input"}`` with or without others, each of them a string or messages.

    With ``output`` it is a completion, with ``chosen`` and ``rejected`` a preference, with ``output`` and a boolean
    ``label`` unpaired. Alone it is a prompt, whose ``label`` (the right answer) is passed on and is also ``solution``,
    which rewards look for.
    """

    name = "openrlhf"
    shapes = (
        Shape("prompt", ("input",), optional=("label",), kept=("label",)),
        Shape("completion", ("input", "output")),
        Shape("preference", ("input", "chosen", "rejected"), optional=("margin",)),
        Shape("unpaired", ("input", "output", "label")),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Input as the prompt, and what the kind has in addition."""
        prompt = formats.content(row, "input")
        if kind == "preference":
            answers = {name: formats.content(row, name) for name in ("chosen", "rejected")}
            return {**formats.join(prompt, "input", answers), "margin": formats.number(row, "margin")}
        answers = {"completion": formats.content(row, "output")} if kind in ("completion", "unpaired") else {}
        found: dict[str, Any] = formats.join(prompt, "input", answers, "output")
        return {**found, "label": formats.boolean(row, "label")} if kind == "unpaired" else found

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """Convert as every format does; a prompt's label becomes its column ``solution`` too."""
        record = super().convert(row, source)
        if record.kind != "prompt" or "label" not in row:
            return record
        return replace(record, columns={"solution": row["label"], **record.columns})
