"""About seventy ways for a row to be bad, each with the kind and field that must be reported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def good(number: int) -> Row:
    """A preference row; text that looks suspicious and is not comes round every few rows."""
    words = (
        "plain",
        "😀 é \u2028 \u00a0",
        "NaN, Infinity and 1e999",
        '{"a": "\\u0000"}',
        "\\ud83d",
        "tab\tand\nline\x01",
    )
    text = f"{words[number % len(words)]} {number}"
    return {
        "id": f"row-{number}",
        "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": f"question {text}"}],
        "chosen": [{"role": "assistant", "content": f"good {text}"}],
        "rejected": [{"role": "assistant", "content": f"bad {text}"}],
        "margin": number / 7,
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "chat_template_kwargs": {"enable_thinking": bool(number % 2)},
        "solution": number,
        "note": {"nested": [number, None, True, {"text": text}]},
    }


def line(row: Any, ascii_only: bool = True) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode()


def _with(**changes: Any) -> bytes:
    return line({**good(0), "id": None, **changes})


def _without(*keys: str) -> bytes:
    return line({key: value for key, value in good(0).items() if key not in (*keys, "id")})


def _text(raw: bytes) -> bytes:
    """The good row with raw bytes put inside the chosen answer."""
    return _with(chosen=[{"role": "assistant", "content": "@@"}]).replace(b"@@", raw)


def _answer(**message: Any) -> bytes:
    return _with(chosen=[{"role": "assistant", "content": "yes", **message}])


def _edit(change: Callable[[Row], Any]) -> bytes:
    row = copy.deepcopy(good(0) | {"id": None})
    change(row)
    return line(row)


USER, YES = {"role": "user", "content": "and?"}, {"role": "assistant", "content": "yes"}


def call_of(arguments: str) -> Row:
    return {"type": "function", "function": {"name": "look", "arguments": arguments}}


CALL = call_of("{")
CHOSEN = "chosen[0].content"

POISON: list[tuple[str, bytes, str, str]] = [
    ("broken off", b'{"prompt": "a", "chosen": ', "malformed-json", ""),
    ("no closing brace", _with()[:-1], "malformed-json", ""),
    ("trailing comma", _with()[:-1] + b",}", "malformed-json", ""),
    ("single quotes", b"{'prompt': 'a'}", "malformed-json", ""),
    ("unquoted key", b'{prompt: "a"}', "malformed-json", ""),
    ("two objects", _with() + b" {}", "malformed-json", ""),
    ("bare word", b"nothing", "malformed-json", ""),
    ("raw control character", _text(b"\x01"), "malformed-json", ""),
    ("bad escape", _text(b"\\x"), "malformed-json", ""),
    ("byte order mark inside", b"\xef\xbb\xbf" + _with(), "malformed-json", ""),
    ("a list", b"[1, 2]", "wrong-type", ""),
    ("a string", b'"text"', "wrong-type", ""),
    ("a number", b"17", "wrong-type", ""),
    ("null", b"null", "wrong-type", ""),
    ("true", b"true", "wrong-type", ""),
    ("byte 0xff", _text(b"\xff"), "invalid-utf8", ""),
    ("half a character", _text(b"\xe2\x82"), "invalid-utf8", ""),
    ("overlong encoding", _text(b"\xc0\xaf"), "invalid-utf8", ""),
    ("encoded surrogate", _text(b"\xed\xa0\x80"), "invalid-utf8", ""),
    ("latin-1", _text("é".encode("latin-1")), "invalid-utf8", ""),
    ("utf-16", '{"prompt": "a"}'.encode("utf-16-le"), "nul", ""),
    ("high surrogate", _text(b"\\ud83d"), "lone-surrogate", CHOSEN),
    ("low surrogate", _text(b"\\ude00"), "lone-surrogate", CHOSEN),
    ("pair the wrong way round", _text(b"\\ude00\\ud83d"), "lone-surrogate", CHOSEN),
    ("surrogate elsewhere", _with(note={"a": ["\ud800"]}), "lone-surrogate", "note.a[0]"),
    ("surrogate in a key", _with(note={"\ud800": 1}), "lone-surrogate", "note.'\\ud800'"),
    ("escaped NUL", _text(b"\\u0000"), "nul", CHOSEN),
    ("raw NUL", _text(b"\0"), "nul", ""),
    ("nothing but NUL", b"\0" * 64, "nul", ""),
    ("100 MB", _text(b"x" * 100_000_000), "too-long", ""),
    ("just too long", _text(b"x" * 2**24), "too-long", ""),
    ("100,000 lists", _with(note="@").replace(b'"@"', b"[" * 100_000 + b"]" * 100_000), "too-deep", ""),
    ("70 lists", _with(note="@").replace(b'"@"', b"[" * 70 + b"]" * 70), "too-deep", "note"),
    ("NaN", _with(margin=float("nan")), "number", "margin"),
    ("Infinity", _with(margin=float("inf")), "number", "margin"),
    ("minus infinity elsewhere", _with(note=[{"a": -float("inf")}]), "number", "note[0].a"),
    ("1e999", _with(margin="@").replace(b'"@"', b"1e999"), "number", "margin"),
    ("5,000 digits", _with(note="@").replace(b'"@"', b"1" * 5000), "number", ""),
    ("key twice", _with()[:-1] + b', "margin": 1}', "duplicate-key", "margin"),
    ("key twice inside", _with(note="@").replace(b'"@"', b'{"a": 1, "a": 1}'), "duplicate-key", "a"),
    ("no chosen", _without("chosen"), "missing-field", "chosen"),
    ("no answers", _without("chosen", "rejected"), "missing-field", "chosen"),
    ("no prompt, nothing shared", _without("prompt"), "missing-field", "prompt"),
    ("nothing", b"{}", "missing-field", "chosen"),
    ("no role", _with(chosen=[{"content": "yes"}]), "missing-field", "chosen[0].role"),
    ("no content", _with(chosen=[{"role": "assistant"}]), "missing-field", CHOSEN),
    ("prompt is a number", _with(prompt=3), "wrong-type", "prompt"),
    ("chosen is an object", _with(chosen=YES), "wrong-type", "chosen"),
    ("messages are strings", _with(chosen=["yes"]), "wrong-type", "chosen[0]"),
    ("content is a number", _answer(content=4), "wrong-type", CHOSEN),
    ("a part of no known type", _answer(content=[{"type": "vibe", "text": "yes"}]), "wrong-type", f"{CHOSEN}[0]"),
    ("a part that is a number", _answer(content=[1]), "wrong-type", f"{CHOSEN}[0]"),
    (
        "parts of unequal weight",
        _answer(content=[{"type": "text", "text": "a", "train": False}, "b"]),
        "wrong-type",
        CHOSEN,
    ),
    ("a picture", _answer(content=[{"type": "image_url", "image_url": {"url": "a.png"}}]), "media", f"{CHOSEN}[0]"),
    ("images beside", _with(images=["a.png"]), "media", "images"),
    (
        "a place for a picture",
        _edit(lambda row: row["prompt"][1].update(content="<image>who?")),
        "media",
        "prompt[1].content",
    ),
    ("role is a number", _answer(role=1), "wrong-type", "chosen[0].role"),
    ("margin is a word", _with(margin="big"), "wrong-type", "margin"),
    ("margin is a list", _with(margin=[1]), "wrong-type", "margin"),
    ("margin is true", _with(margin=True), "wrong-type", "margin"),
    ("tools are a number", _with(tools=1), "wrong-type", "tools"),
    ("tools are no JSON", _with(tools="[{]"), "malformed-json", "tools"),
    ("tools are names", _with(tools=["look"]), "wrong-type", "tools[0]"),
    ("kwargs are a list", _with(chat_template_kwargs=[1]), "wrong-type", "chat_template_kwargs"),
    ("calls are a string", _answer(tool_calls="look"), "wrong-type", "chosen[0].tool_calls"),
    ("call without a name", _answer(tool_calls=[{"function": {}}]), "wrong-type", "chosen[0].tool_calls[0]"),
    (
        "arguments are no JSON",
        _answer(tool_calls=[CALL]),
        "malformed-json",
        "chosen[0].tool_calls[0].function.arguments",
    ),
    ("weight below 0", _answer(weight=-1), "wrong-type", "chosen[0].weight"),
    ("weight of 400 digits", _answer(weight=10**400), "wrong-type", "chosen[0].weight"),
    ("weight is a word", _answer(train="maybe"), "wrong-type", "chosen[0].train"),
    ("user to be learned", _edit(lambda row: row["prompt"][1].update(train=True)), "wrong-type", "prompt[1].train"),
    (
        "parts of a message to be learned",
        _answer(train_detail=[{"begin_offset": 0}]),
        "wrong-type",
        "chosen[0].train_detail",
    ),
    ("NaN is no JSON", b'{"text": NaN x}', "malformed-json", ""),
    (
        "surrogate in JSON in a string",
        _answer(tool_calls=[call_of('{"a": "\\ud800"}')]),
        "lone-surrogate",
        "chosen[0].tool_calls[0].function.arguments.a",
    ),
    ("null content", _answer(content=None), "null", CHOSEN),
    ("null answer", _with(chosen=None), "null", "chosen"),
    ("no messages", _with(chosen=[]), "empty", "chosen"),
    ("empty content", _answer(content=""), "empty", CHOSEN),
    ("white space", _answer(content=" \n\u00a0"), "empty", CHOSEN),
    ("same answers", _edit(lambda row: row.update(rejected=row["chosen"])), "same-answers", "rejected"),
    ("unknown role", _answer(role="asistant"), "unknown-role", "chosen[0].role"),
    ("prompt is answered already", _edit(lambda row: row["prompt"].append(YES)), "message-order", "prompt"),
    ("answer by the user", _with(chosen=[USER, YES]), "message-order", "chosen"),
    ("result without a call", _with(prompt=[{"role": "tool", "content": "1"}, USER]), "message-order", "prompt[0]"),
    ("another kind", line({"prompt": "a", "completion": "b"}), "mixed", ""),
    ("another format", line({"conversations": [{"from": "human", "value": "a"}]}), "mixed", ""),
    ("another style", _with(prompt="a", chosen="b", rejected="c"), "mixed", ""),
    ("id of another row", _with(id="row-0"), "duplicate-id", "id"),
]
