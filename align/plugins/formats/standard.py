"""Rows as TRL and OpenAI lay them out: text, messages, prompts, completions, preferences and single judged answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align import Content, Format, Kind, Shape, formats
from align.formats import RowError


class Text(Format):
    """``{"text": str}``."""

    name = "text"
    shapes = (Shape("text", ("text",)),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The text."""
        return {"text": formats.string(row, "text")}


class Messages(Format):
    """``{"messages": [{"role": str, "content": str}, ...]}``, the list also as a string of JSON.

    With a boolean ``label``, it judges the last message. With ``rejected_response`` (ms-swift: a string or messages),
    the last message is the chosen answer and that the rejected one.
    """

    name = "messages"
    shapes = (
        Shape("text", ("messages",)),
        Shape("unpaired", ("messages", "label")),
        Shape("preference", ("messages", "rejected_response"), optional=("margin",)),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The conversation, which must have an assistant message; or its last message as the answer to the rest."""
        messages = formats.dialogue(row, "messages")
        if kind == "text":
            return {"text": messages}
        if kind == "unpaired":
            return {**formats.judged(messages, "messages"), "label": formats.boolean(row, "label")}
        answers = {"chosen": messages[-1:], "rejected": formats.content(row, "rejected_response")}
        return {**formats.join(messages[:-1], "messages", answers), "margin": formats.number(row, "margin")}


class Prompt(Format):
    """``{"prompt": str or messages}``."""

    name = "prompt"
    shapes = (Shape("prompt", ("prompt",)),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The prompt, after which it is the assistant's turn."""
        return formats.join(formats.content(row, "prompt"), "prompt", {})


class PromptCompletion(Format):
    """``{"prompt": str or messages, "completion": str or messages}``."""

    name = "prompt-completion"
    shapes = (Shape("completion", ("prompt", "completion")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Prompt and completion."""
        completion = formats.content(row, "completion")
        return formats.join(formats.content(row, "prompt"), "prompt", {"completion": completion})


_PROMPT_COLUMNS = ("question", "query", "problem")
"""Columns that probably hold the prompt: with one of them, a shared start of two strings is not taken for it."""


class Preference(Format):
    """``{"chosen": str or messages, "rejected": ..., "prompt": ..., "margin": number}``; the last two may be absent.

    Without a prompt it is the longest prefix that chosen and rejected share. A prompt given as a string next to whole
    conversations (UltraFeedback) must be the last message of that prefix. ``chosen_messages`` and ``rejected_messages``
    are LLaMA-Factory's names for whole conversations.
    """

    name = "preference"
    shapes = (
        Shape("preference", ("chosen", "rejected"), optional=("prompt", "margin")),
        Shape("preference", ("chosen_messages", "rejected_messages"), optional=("prompt", "margin")),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Prompt, chosen, rejected and margin."""
        whole = row.get("chosen") is None and "chosen_messages" in row
        names = ("chosen_messages", "rejected_messages") if whole else ("chosen", "rejected")
        chosen, rejected = (formats.content(row, name) for name in names)
        prompt = None if row.get("prompt") is None else formats.content(row, "prompt")
        likely = next((key for key in _PROMPT_COLUMNS if isinstance(row.get(key), str) and row[key].strip()), None)
        if prompt is None and likely and isinstance(chosen, str):
            what = (
                f"is missing, and {likely!r} is not read; if that is it, read it so, with columns: {{prompt: {likely}}}"
            )
            raise RowError("missing-field", what, "prompt")
        return {**_pair(prompt, chosen, rejected), "margin": formats.number(row, "margin")}


def _pair(prompt: Content | None, chosen: Content, rejected: Content) -> dict[str, Content]:
    if chosen == rejected:
        raise RowError("same-answers", "is the same as chosen", "rejected")
    whole = isinstance(chosen, list) and isinstance(rejected, list) and chosen[0]["role"] != "assistant"
    if prompt is not None and not (isinstance(prompt, str) and whole):
        return formats.join(prompt, "prompt", {"chosen": chosen, "rejected": rejected})
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong-type", "is not of the same style (string or messages) as chosen", "rejected")
    cut = formats.shared_prompt(chosen, rejected)
    if not cut:
        raise RowError("missing-field", "is missing, and chosen and rejected share no beginning", "prompt")
    shared = chosen[:cut]
    if isinstance(prompt, str) and isinstance(shared, list) and shared[-1].get("content") != prompt:
        raise RowError("message-order", "is not the last message before chosen and rejected part", "prompt")
    answers = {"chosen": chosen[cut:], "rejected": rejected[cut:]}
    for name, answer in answers.items():
        formats.begins(answer, name)
    return formats.join(shared, "chosen", answers)


class Unpaired(Format):
    """``{"prompt": str or messages, "completion": str or messages, "label": bool}``."""

    name = "unpaired"
    shapes = (Shape("unpaired", ("prompt", "completion", "label")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Prompt, completion and label."""
        completion = formats.content(row, "completion")
        found = formats.join(formats.content(row, "prompt"), "prompt", {"completion": completion})
        return {**found, "label": formats.boolean(row, "label")}
