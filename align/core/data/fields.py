"""Reading one field of a row: what a format plugin is written with. Each raises RowError naming the field."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import isfinite
from typing import Any

from align.core.data.faults import RowError
from align.core.data.strict import a, decode
from align.schemas.errors import did_you_mean
from align.schemas.records import Content, Message

ROLES = ("system", "developer", "user", "assistant", "tool")

Row = Mapping[str, Any]


def content(row: Row, key: str) -> Content:
    """A string, or a list of messages; neither empty."""
    value = row[key]
    if isinstance(value, list):
        return messages(value, key)
    if value is None or isinstance(value, str):
        return string(row, key)
    raise RowError("wrong-type", f"is {a(value)}, not a string or a list of messages", key)


def string(row: Row, key: str) -> str:
    """A string with more than white space in it."""
    value = row[key]
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty", "is empty", key)
        return value
    if value is None:
        raise RowError("null", "is null", key)
    raise RowError("wrong-type", f"is {a(value)}, not a string", key)


def optional_string(row: Row, key: str) -> str:
    """A string, "" where it is null or not there."""
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    raise RowError("wrong-type", f"is {a(value)}, not a string", key)


def boolean(row: Row, key: str) -> bool:
    """True or false; 1, 0 and, as CSV has no other way, the words for it."""
    value = row[key]
    known = {"true": True, "1": True, "false": False, "0": False}
    word = str(value).lower() if isinstance(value, (bool, int, str)) else ""
    if word in known:
        return known[word]
    if value is None:
        raise RowError("null", "is null", key)
    raise RowError("wrong-type", f"is {_shown(value)}, not true or false", key)


def number(row: Row, key: str) -> float | None:
    """A finite number, also one spelt in a string; None where it is null, "" or not there."""
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise RowError("wrong-type", f"is {_shown(value)}, not a finite number", key)


def structure(row: Row, key: str, of: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """A list or an object, or a string of JSON that holds one; None where it is null, "" or not there."""
    value = row.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = decode(value)
        except RowError as error:
            raise RowError(error.kind, error.what, key) from None
    if not isinstance(value, of):
        raise RowError("wrong-type", f"is {a(value)}, not {a(of())}", key)
    return value


def tools(row: Row) -> list[dict[str, Any]] | None:
    """The column ``tools``: JSON schemas of functions, as a list or a string of JSON."""
    found: list[dict[str, Any]] | None = structure(row, "tools", list)
    for index, tool in enumerate(found or ()):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise RowError("wrong-type", "is no JSON schema of a function with a name", f"tools[{index}]")
    return found


def dialogue(row: Row, key: str) -> list[Message]:
    """A whole conversation, a list or a string of JSON: somebody speaks and the assistant answers."""
    found = structure(row, key, list)
    if found is None:
        raise RowError("null", "is null", key)
    return answered(messages(found, key), key)


def answered(found: list[Message], key: str) -> list[Message]:
    """The same messages, if the assistant speaks in them and somebody else does too."""
    speakers = {message["role"] == "assistant" for message in found}
    if True not in speakers:
        raise RowError("message-order", "has no assistant message", key)
    if False not in speakers:
        raise RowError("message-order", "has nothing but assistant messages", key)
    return found


def messages(value: list[Any], field: str, names: tuple[str, str] = ("role", "content")) -> list[Message]:
    """Messages as they are, but that a tool call's arguments spelt as JSON become the object that templates expect.

    names: what the file calls role and content, for messages about them.
    """
    if not value:
        raise RowError("empty", "has no messages", field)
    found, previous = [], ""
    for index, message in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise RowError("wrong-type", f"is {a(message)}, not a message with role and content", where)
        role = message.get("role")
        if role not in ROLES:
            raise _bad_role(message, role, f"{where}.{names[0]}")
        if role == "tool" and previous not in ("assistant", "tool"):
            raise RowError("message-order", "answers a call, but no assistant message comes before it", where)
        calls = message.get("tool_calls")
        if calls is not None:
            message = {**message, "tool_calls": _calls(calls, f"{where}.tool_calls")}
        if message.get("weight", 1) != 1:
            raise RowError("wrong-type", "is not read: weights of single messages are unknown here", f"{where}.weight")
        _check_content(message, f"{where}.{names[1]}")
        found.append(message)
        previous = role
    return found


def join(prompt: Content, key: str, answers: Mapping[str, Content], called: str = "") -> dict[str, Content]:
    """Prompt and answers by Record field: of one style (messages if any is), the prompt not repeated in the answers.

    key: what the file calls the prompt. called: and the answer, where it is not its Record field's name.
    Raises RowError where it is not the assistant's turn to answer.
    """
    if isinstance(prompt, list) or any(isinstance(answer, list) for answer in answers.values()):
        prompt = as_message("user", prompt)
        answers = {name: as_message("assistant", answer) for name, answer in answers.items()}
        if prompt[-1]["role"] == "assistant":
            raise RowError("message-order", "ends with an assistant message, so there is nothing to answer", key)
        if all(answer[: len(prompt)] == prompt for answer in answers.values()):
            answers = {name: answer[len(prompt) :] for name, answer in answers.items()}
        for name, answer in answers.items():
            begins(answer, called or name)
    return {"prompt": prompt, **answers}


def begins(answer: Content, key: str) -> None:
    """Raise RowError unless an answer is there and, of messages, the first is the assistant's."""
    if not answer:
        raise RowError("empty", "adds nothing to the prompt", key)
    if isinstance(answer, list) and answer[0]["role"] != "assistant":
        raise RowError("message-order", f"begins with a message of {answer[0]['role']}, not of assistant", key)


def shared_prompt(chosen: Content, rejected: Content) -> int:
    """How much of both is the prompt: the longest prefix of messages, or of text, that they share.

    Text is cut at a word: tokenizers join a space to what follows, so the shared part of a word, and the space before
    it, belong to the answers. What answers share adds the same to both log-probabilities.
    """
    longest = range(min(len(chosen), len(rejected)))
    common = bisect_left(longest, True, key=lambda last: chosen[: last + 1] != rejected[: last + 1])
    shared = chosen[:common]
    if isinstance(shared, list):
        return common
    if not shared.strip():
        return 0
    cut = common if shared[-1].isspace() else common - len(shared.rsplit(None, 1)[-1])
    cut -= shared[cut - 1 : cut] == " "
    return cut if shared[:cut].strip() else common


def as_message(role: str, value: Content) -> list[Message]:
    """Content as messages: a string becomes one message of that role."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _bad_role(message: Message, role: Any, field: str) -> RowError:
    if "role" not in message:
        return RowError("missing-field", "is missing", field)
    if not isinstance(role, str):
        return RowError("wrong-type", f"is {a(role)}, not a string", field)
    return RowError("unknown-role", f"is {_shown(role)}; {did_you_mean(role, ROLES)}", field)


def _check_content(message: Message, field: str) -> None:
    says = message.get("content")
    if isinstance(says, str):
        if says.strip() or message["role"] not in ("user", "assistant") or _acts(message):
            return
        raise RowError("empty", "is empty", field)
    if says is None:
        if _acts(message):
            return
        raise (
            RowError("null", "is null", field)
            if "content" in message
            else RowError("missing-field", "is missing", field)
        )
    raise RowError("wrong-type", f"is {a(says)}, not a string (only text is read)", field)


def _acts(message: Message) -> bool:
    return message["role"] == "assistant" and any(
        message.get(key) for key in ("tool_calls", "thinking", "reasoning_content")
    )


def _calls(calls: Any, field: str) -> list[Any]:
    if not isinstance(calls, list):
        raise RowError("wrong-type", f"is {a(calls)}, not a list", field)
    found = []
    for index, call in enumerate(calls):
        where = f"{field}[{index}]"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise RowError("wrong-type", "is no call of a function with a name", where)
        if isinstance(function.get("arguments"), str):
            try:
                function = {**function, "arguments": structure(function, "arguments", dict) or {}}
            except RowError as error:
                raise error.under(f"{where}.function.") from None
            call = {**call, "function": function} if "function" in call else function
        found.append(call)
    return found


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
