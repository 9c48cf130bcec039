"""Tool calls of a server's message are part of the reply's text: without them every eval of tools would score zero."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from align import AlignError
from align.core.inference.eval_models import ServerModel
from align.evals import Generate
from align.plugins.evals.bfcl.decode import tool_calls
from align.settings import Sampling

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


class Recorded:
    """A client that gives one message, and keeps what was sent."""

    base_url = "http://server/v1"

    def __init__(self, message: Any) -> None:
        self.message = message
        self.sent: dict[str, Any] = {}

    def submit(self, method: str, path: str, fields: dict[str, Any]) -> Future[dict[str, Any]]:
        self.sent = fields
        future: Future[dict[str, Any]] = Future()
        finish = "tool_calls" if "tool_calls" in self.message else "stop"
        future.set_result({"choices": [{"message": self.message, "finish_reason": finish}], "usage": {}})
        return future

    def redacted(self, text: str) -> str:
        return text


def reply(message: Any) -> tuple[str, dict[str, Any]]:
    client = Recorded(message)
    query = Generate([{"role": "user", "content": "Call it."}], Sampling(), tools=[TOOL])
    (found,) = ServerModel(client, "m").generate([(query, 1)])  # type: ignore[arg-type]
    return found.text, client.sent


def test_calls_are_read_as_those_of_a_local_model() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    text, sent = reply({"role": "assistant", "content": None, "tool_calls": calls})
    assert tool_calls(text) == [{"f": {"a": "x"}}, {"g": {}}] and sent["tools"] == [TOOL]
    text, _ = reply({"role": "assistant", "content": "Let me see.", "tool_calls": calls})
    assert text.startswith("Let me see.\n<tool_call>") and len(tool_calls(text)) == 2


def test_messages_without_calls_are_their_text() -> None:
    assert reply({"content": "Hello."})[0] == "Hello."
    assert reply({"content": "Hello.", "tool_calls": None})[0] == "Hello."
    assert reply({"content": None})[0] == ""


def test_calls_of_an_unknown_form_are_an_error_and_no_zero() -> None:
    with pytest.raises(AlignError, match="unknown form"):
        reply({"content": None, "tool_calls": [{"name": "f"}]})
