"""The base of row formats, and the readers of single fields that format plugins are written with.

A format lists the keys of its rows (``Shape``) and reads them into a Record's fields (``Format.read``). Messages of
every known layout (OpenAI, ShareGPT, Anthropic, ...) become the form that chat templates expect.
"""

from __future__ import annotations

import copy
import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from typing import Any, ClassVar, Self, get_args

from align.core.data.rows import RowError, decode, describe_type, inspect
from align.schemas import base
from align.schemas.errors import did_you_mean
from align.schemas.records import Arguments, Content, Kind, Message, Record

# Readers of one field. Each raises RowError naming the field.

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response"), "tool"),
}
"""The role that templates know for each name of a message's author (OpenAI, ShareGPT, LLaMA-Factory, ms-swift)."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios", "rejected_images")
"""Columns that hold pictures, video or sound, which are never learned here."""

ONLY_TEXT = "only text is learned (data.on_bad_rows: skip leaves such rows out)"

Row = Mapping[str, Any]


def content(row: Row, key: str) -> Content:
    """Return the field as a string or a list of messages, not empty."""
    value = row[key]
    if isinstance(value, list):
        return messages(value, key)
    if value is None or isinstance(value, str):
        return string(row, key)
    single = "; put a single message in a list" if isinstance(value, dict) else ""
    raise RowError("wrong-type", f"is {describe_type(value)}, not a string or a list of messages{single}", key)


def string(row: Row, key: str) -> str:
    """Return the field as a string that is not only white space."""
    value = row[key]
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty", "is empty", key)
        return value
    if value is None:
        raise RowError("null", "is null", key)
    raise RowError("wrong-type", f"is {describe_type(value)}, not a string", key)


def optional_string(row: Row, key: str) -> str:
    """Return the field as a string, "" where it is null or absent."""
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    raise RowError("wrong-type", f"is {describe_type(value)}, not a string", key)


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def is_boolean(value: Any) -> bool:
    """Return True if ``boolean`` can read a value."""
    return isinstance(value, (bool, int, str)) and str(value).lower() in _BOOLEANS


def boolean(row: Row, key: str) -> bool:
    """Return the field as True or False; 1, 0 and, because CSV has only strings, the words are read too."""
    value = row[key]
    if is_boolean(value):
        return _BOOLEANS[str(value).lower()]
    if value is None:
        raise RowError("null", "is null", key)
    raise RowError("wrong-type", f"is {_shown(value)}, not true or false", key)


def number(row: Row, key: str) -> float | None:
    """Return the field as a finite number, read from a string too; None where it is null, "" or absent."""
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
    """Return the field as a list or an object, also parsed from a string of JSON; None where null, "" or absent."""
    value = row.get(key)
    if value is None or value == "":
        return None
    value = unpacked(value, key) if isinstance(value, str) else pruned(value)
    if not isinstance(value, of):
        raise RowError("wrong-type", f"is {describe_type(value)}, not {describe_type(of())}", key)
    return value


def unpacked(text: str, field: str) -> Any:
    """Return the value that a string of JSON holds. Raises RowError for anything that no row may hold."""
    try:
        value = decode(text)
    except RowError as error:
        raise RowError(error.kind, error.what, field) from None
    inspect(value, field)
    return value


def pruned(value: Any) -> Any:
    """Return the value without the keys of objects that are null, at any depth.

    Arrow gives every object the keys of all others, as null, and it cannot be seen afterwards which were written. So
    null means absent in every type of file, and the same rows give the same tokens.
    """
    if isinstance(value, Mapping):
        return {key: pruned(item) for key, item in value.items() if item is not None}
    return [pruned(item) for item in value] if isinstance(value, list | tuple) else value


def tools(row: Row) -> list[dict[str, Any]] | None:
    """Return the column ``tools``, JSON schemas of functions given as a list or a string of JSON; None without tools.

    Each may be a string of JSON, and so may its ``parameters``. A bare schema is put under ``function``, as templates
    and servers have it. OpenAI's older ``functions`` are read where there are no ``tools``.
    """
    key = "functions" if reads_functions(row) else "tools"
    found = [_tool(tool, f"{key}[{index}]") for index, tool in enumerate(structure(row, key, list) or ())]
    return found or None


def reads_functions(row: Row) -> bool:
    """Return True if the row's ``functions`` are its tools: schemas of functions, in a row without ``tools``."""
    value = row.get("functions")
    listed = isinstance(value, list) and all(isinstance(item, dict) and "parameters" in item for item in value)
    return bool(value) and listed and row.get("tools") is None


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """Return one tool in OpenAI's form, ``{"type": "function", "function": {...}}``."""
    if isinstance(tool, str) and tool.lstrip().startswith("{"):
        tool = unpacked(tool, where)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise RowError("wrong-type", "is no JSON schema of a function with a name", where)
    if isinstance(function.get("parameters"), str):
        function = {**function, "parameters": unpacked(function["parameters"], f"{where}.parameters")}
    if "function" in tool:
        return {**tool, "function": function}
    return {"type": "function", "function": {k: v for k, v in function.items() if (k, v) != ("type", "function")}}


def dialogue(row: Row, key: str) -> list[Message]:
    """Return the field as a whole conversation, in which the assistant answers somebody."""
    return answered(turns(row, key), key)


def turns(row: Row, key: str) -> list[Message]:
    """Return the field as messages, from a list, a single message, or a string of JSON."""
    value = row[key]
    if isinstance(value, dict | list):
        return messages([value] if isinstance(value, dict) else value, key)
    found = structure(row, key, list)
    if found is None:
        raise RowError("null", "is null", key)
    return messages(found, key)


def judged(found: list[Message], key: str) -> dict[str, Content]:
    """Split a conversation whose last message was judged into prompt and completion."""
    if len(found) < 2:
        raise RowError("message-order", "has no answer after a prompt", key)
    return join(found[:-1], key, {"completion": found[-1:]}, key)


def answered(found: list[Message], key: str) -> list[Message]:
    """Return the messages unchanged. Raises RowError unless the assistant and somebody else each have at least one."""
    from_assistant = {message["role"] == "assistant" for message in found}
    if True not in from_assistant:
        raise RowError("message-order", "has no assistant message", key)
    if False not in from_assistant:
        raise RowError("message-order", "has nothing but assistant messages", key)
    return found


def messages(value: list[Any], field: str) -> list[Message]:
    """Convert the messages of any supported format into the form that chat templates expect.

    Every message has ``role`` and a string as ``content``; where the row has them, ``tool_calls`` (with an object as
    arguments), ``reasoning_content`` and ``weight`` (0 or more: its weight in the loss). Other keys stay, except null
    ones. Raises RowError naming the field for content that is not text.
    """
    if not value:
        raise RowError("empty", "has no messages", field)
    found: list[Message] = []
    calling = False
    for index, raw in enumerate(value):
        where = f"{field}[{index}]"
        for message in [raw] if _plain(raw) else _message(raw, where):
            if message["role"] == "tool" and (not found or found[-1]["role"] not in ("assistant", "tool")):
                raise RowError("message-order", "answers a call, but no assistant message comes before it", where)
            found.append(message)
        # ms-swift writes parallel calls as consecutive messages; templates expect them in one message's list.
        was, calling = calling, "tool_calls" in found[-1] and _speaker(raw)[1] in _CALLERS
        if was and calling:
            found[-2]["tool_calls"] += found.pop()["tool_calls"]
    return found


def join(prompt: Content, key: str, answers: Mapping[str, Content], called: str = "") -> dict[str, Content]:
    """Return prompt and answers by Record field, all strings or all messages, without the prompt repeated in answers.

    key: the prompt's column. called: the answer's column, where it is not named as its Record field.
    Raises RowError where it is not the assistant's turn to answer.
    """
    if isinstance(prompt, str):
        no_media(prompt, key)
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


def with_system(found: Mapping[str, Any], row: Row, keys: Iterable[str]) -> tuple[dict[str, Any], bool]:
    """Put the system prompt of a separate column first. Return the fields, and True if such a column was read.

    keys: the columns to look in. A prompt and answers that are strings become messages; a plain text stays one and the
    column is not read. A conversation with a system message of its own keeps that.
    """
    given = [_text(row[key], key) for key in keys if isinstance(row.get(key), str) or _is_parts(row.get(key))]
    if not given:
        return dict(found), False
    head = "prompt" if found.get("prompt") is not None else "text"
    if not (head == "prompt" or isinstance(found.get("text"), list)):
        return dict(found), False
    system = next(filter(str.strip, given), "")
    answers = {k: as_message("assistant", v) for k, v in found.items() if k in ("completion", "chosen", "rejected")}
    first = as_message("user", found[head])
    if system and first[0]["role"] not in ("system", "developer"):
        first = [{"role": "system", "content": system}, *first]
    return {**found, **answers, head: first}, True


def _is_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "text" in part for part in value)


def begins(answer: Content, key: str) -> None:
    """Raise RowError unless there is an answer and, if it is messages, the first is the assistant's."""
    if not answer:
        raise RowError("empty", "adds nothing to the prompt", key)
    if isinstance(answer, list) and answer[0]["role"] != "assistant":
        raise RowError("message-order", f"begins with a message of {answer[0]['role']}, not of assistant", key)


def shared_prompt(chosen: Content, rejected: Content) -> int:
    """Return the length of the prompt that two answers share: their longest common prefix of messages, or of text.

    Text is split at a word: tokenizers join a space to the word after it, so a shared part of a word, and the space
    before it, belong to the answers. Shared tokens of answers add the same to both log-probabilities.
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
    """Return content as messages: a string becomes one message of that role."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


_CALLERS = ("function_call", "tool_call")
_ACTS = ("tool_calls", "thinking", "reasoning_content")
"""Fields that an assistant's message may have in place of content."""
_WEIGHTS = ("weight", "loss_weight", "loss_scale", "train", "loss")
"""Names of a message's weight in OpenAI, LLaMA-Factory, ms-swift, axolotl and ms-swift again."""
_PICTURED = re.compile(
    r"<image(?:[ _]?\d+)?>|<img>[^<\s]+</img>|^[ \t]*<(?:video|audio)>|<(?:video|audio)>[ \t]*$", re.M
)
"""Placeholders of pictures and sound. ``<video>`` and ``<audio>``, HTML tags too, count only at a line's edge."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.S)


def _plain(raw: Any) -> bool:
    """Return True if a message is already in our form: role and content, and no tag in it.

    Nearly all messages are: this check saves them the full conversion.
    """
    if not (isinstance(raw, dict) and raw.keys() == {"role", "content"}):
        return False
    role, text = raw["role"], raw["content"]
    return isinstance(role, str) and role in _OURS and isinstance(text, str) and "<" not in text and bool(text.strip())


_OURS = frozenset(ROLES.values())


def _message(raw: Any, where: str) -> list[Message]:
    """Convert one message; it becomes several where it holds both results of calls and text (Anthropic)."""
    if not isinstance(raw, dict):
        raise RowError("wrong-type", f"is {describe_type(raw)}, not a message with role and content", where)
    message = pruned(raw)
    key, speaker = _speaker(raw)
    if not isinstance(speaker, str):
        if key not in raw:
            raise RowError("missing-field", "is missing", f"{where}.{key}")
        raise RowError("wrong-type", f"is {describe_type(speaker)}, not a string", f"{where}.{key}")
    if speaker not in ROLES:
        raise RowError("unknown-role", f"is {_shown(speaker)}; {did_you_mean(speaker, ROLES)}", f"{where}.{key}")
    role = ROLES[speaker]
    inside = next((k for k in ("content", "value") if k in message), "value" if key == "from" else "content")
    at, inner, results = f"{where}.{inside}", message.pop(inside, None), list[Message]()
    if key == "from":
        del message["from"]
    others = {k: v for k, v in message.items() if k != "role"}
    message = {"role": role, "content": inner, **others}
    if isinstance(inner, list):
        results = _parts(message, inner, at)
    elif speaker in _CALLERS and inner is not None:
        calls = unpacked(inner, at) if isinstance(inner, str) else inner
        message |= {"content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
    if isinstance(message.get("reasoning_content"), list):  # axolotl's form
        message["reasoning_content"] = _text(message["reasoning_content"], f"{where}.reasoning_content")
    if isinstance(message.get("function_call"), dict):  # OpenAI, before tool_calls
        message["tool_calls"] = [message.pop("function_call")]
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = _calls(calls, at if speaker in _CALLERS else f"{where}.tool_calls")
    _weigh(message, where)
    if results and not message["content"]:  # Anthropic sends results as a user's message with nothing else in it
        return results
    _check_content(message, at, inside in raw)
    return [*results, message]


def _speaker(raw: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the key that names a message's author, and its value."""
    ours = raw.get("role") is not None or not (raw.keys() & {"from", "value"})
    return ("role", raw.get("role")) if ours else ("from", raw.get("from"))


def _check_content(message: Message, field: str, there: bool) -> None:
    """Set absent content to "" where calls or reasoning take its place. Raises RowError for content that is no text."""
    inner, role = message["content"], message["role"]
    acts = role == "assistant" and any(message.get(key) for key in _ACTS)
    if inner is None and acts:
        message["content"] = inner = ""
    if inner is None and there:
        raise RowError("null", "is null", field)
    if inner is None:
        raise RowError("missing-field", "is missing", field)
    if not isinstance(inner, str):
        raise RowError("wrong-type", f"is {describe_type(inner)}, not a string (only text is read)", field)
    if not inner.strip() and role in ("user", "assistant") and not acts:
        raise RowError("empty", "is empty", field)
    if role != "assistant":
        no_media(inner, field)


def no_media(text: str, field: str) -> None:
    """Raise RowError where a text has a placeholder of a picture or a sound, outside code and not a closed tag."""
    if "<" not in text:
        return
    for match in _PICTURED.finditer(_CODE.sub("", text)):
        mark = match[0].strip()
        if mark.startswith("<img>") or f"</{mark[1:]}" not in text:
            raise RowError("media", f"has a place for a picture or a sound, {_shown(mark)}: {ONLY_TEXT}", field)


def _weigh(message: Message, where: str) -> None:
    """Put the product of all weights of a message under ``weight``, so that any 0 excludes the message."""
    if message.pop("train_detail", None):
        what = "is not read: give the parts that are learned as messages, or the whole with train: true or false"
        raise RowError("wrong-type", what, f"{where}.train_detail")
    weights = list[float]()
    for key in [key for key in _WEIGHTS if key in message]:
        value = message.pop(key)
        # The bound also refuses NaN, infinity and integers that no float holds.
        if not (isinstance(value, bool | int | float) and 0 <= value <= 2**53):
            raise RowError("wrong-type", f"is {_shown(value)}, not a weight of 0 or more", f"{where}.{key}")
        if value and message["role"] != "assistant":
            what = f"is {_shown(value)}, but only what the assistant writes is learned: leave it out"
            raise RowError("wrong-type", what, f"{where}.{key}")
        weights.append(float(value))
    if weights and message["role"] == "assistant":
        message["weight"] = prod(weights)


def _parts(message: Message, parts: list[Any], field: str) -> list[Message]:
    """Merge the parts of a content into the message and return the results of calls among them as messages.

    Text parts are joined to its content, reasoning to ``reasoning_content``, calls to ``tool_calls``.
    """
    merged = _MergedParts([], [], [], [])
    weights = list[dict[str, Any]]()
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise RowError("wrong-type", f"is {describe_type(part)}, not a part of a content", where)
        weights.append({key: part[key] for key in _WEIGHTS if key in part})
        merged.add(part, where)
    if any(weight != weights[0] for weight in weights):
        what = "has parts that are learned and parts that are not: give the message one weight, or cut it in several"
        raise RowError("wrong-type", what, field)
    message["content"] = "".join(merged.texts)
    if weights:
        message |= weights[0]
    if merged.reasoning:
        message["reasoning_content"] = "".join(merged.reasoning)
    if merged.calls:
        message["tool_calls"] = [*message.get("tool_calls", ()), *merged.calls]
    return merged.results


@dataclass(frozen=True, slots=True)
class _MergedParts:
    """The parts of one content by what they hold. results: of tool calls, each a message of its own."""

    texts: list[str]
    reasoning: list[str]
    calls: list[Any]
    results: list[Message]

    def add(self, part: dict[str, Any], where: str) -> None:
        """Add a part. Raises RowError for one that is no text, reasoning or tool call."""
        kind = part.get("type", "text" if "text" in part else None)
        if kind in ("text", "input_text", "output_text", "refusal"):
            self.texts.append(_text(part, where))
        elif kind in ("reasoning", "thinking"):
            self.reasoning.append(_text(part, where))
        elif kind == "tool_call":
            self.calls.extend(_calls_of_part(part, where))
        elif kind == "tool_use":
            self.calls.append(_anthropic_call(part))
        elif kind == "tool_result":
            self.results.append(_anthropic_result(part, where))
        elif isinstance(kind, str) and re.search("image|video|audio|file|document", kind):
            raise RowError("media", f"is a part of type {_shown(kind)}: {ONLY_TEXT}", where)
        else:
            what = "has no type" if kind is None else f"is a part of type {_shown(kind)}, which is not read"
            raise RowError("wrong-type", f"{what}; parts of text, reasoning and tool calls are", where)


def _calls_of_part(part: dict[str, Any], where: str) -> list[Any]:
    """Return the tool calls of a part, which may stand in one of several keys, as JSON text, or be the part itself."""
    call = next((part[key] for key in ("value", "tool_call", "function") if key in part), part)
    if isinstance(call, str):
        call = unpacked(call, where)
    return call if isinstance(call, list) else [call]


def _anthropic_call(part: dict[str, Any]) -> dict[str, Any]:
    """Return Anthropic's ``tool_use`` as a call in OpenAI's form."""
    function = {"name": part.get("name"), "arguments": part.get("input", {})}
    identity = {"id": part["id"]} if "id" in part else {}
    return {**identity, "type": "function", "function": function}


def _anthropic_result(part: dict[str, Any], where: str) -> Message:
    """Return Anthropic's ``tool_result`` as a message of the tool."""
    result: Message = {"role": "tool", "content": _text(part.get("content", ""), f"{where}.content")}
    if "tool_use_id" in part:
        result["tool_call_id"] = part["tool_use_id"]
    return result


def _text(value: Any, field: str) -> str:
    """Return the text of a string, of a part, or of a list of parts. Raises RowError for media and other types."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(item, f"{field}[{index}]") for index, item in enumerate(value))
    if isinstance(value, dict):
        if re.search("image|video|audio|file|document", str(value.get("type"))):
            raise RowError("media", f"is a part of type {_shown(value['type'])}: {ONLY_TEXT}", field)
        for key in ("text", "value", "thinking", "reasoning", "refusal", "content"):
            if key in value:
                return _text(value[key], f"{field}.{key}")
    raise RowError("wrong-type", f"is {describe_type(value)}, not text", field)


def _calls(calls: Any, field: str) -> list[Any]:
    """Return tool calls in OpenAI's form, with arguments as an object that keeps the text it was parsed from."""
    if isinstance(calls, str) and calls.lstrip().startswith("["):
        calls = unpacked(calls, field)
    if not isinstance(calls, list):
        raise RowError("wrong-type", f"is {describe_type(calls)}, not a list", field)
    found = []
    for index, call in enumerate(calls):
        where = f"{field}[{index}]"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise RowError("wrong-type", "is no call of a function with a name", where)
        try:
            text, values = function.get("arguments"), structure(function, "arguments", dict) or {}
            arguments = Arguments.parsed(text, values) if isinstance(text, str) else values
            function = {**function, "arguments": arguments}
        except RowError as error:
            raise error.under(f"{where}.function.") from None
        if "function" in call:
            found.append({**call, "function": function})
        else:
            rest = {key: value for key, value in function.items() if key not in ("name", "arguments")}
            bare = {"name": function["name"], "arguments": function["arguments"]}
            found.append({"type": "function", **rest, "function": bare})
    return found


def _shown(value: Any) -> str:
    """Return a value for a message: ASCII, at most 40 characters."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


KINDS: tuple[Kind, ...] = get_args(Kind)
SYSTEM = ("system", "system_prompt")
"""Columns that hold a system prompt for the rest of the row."""
ANYWHERE = ("tools", "functions", "chat_template_kwargs", *SYSTEM)
"""Keys that are read in rows of every shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys that identify a row of one kind.

    required: keys that must be there; optional: keys that may be. Both are read, and all other columns are passed on in
    ``Record.columns``. kept: required or optional keys that stay in ``Record.columns`` too. unless: a row that has all
    of these keys is not of this shape.
    """

    kind: Kind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """The keys that are read, with those of ``ANYWHERE``, which any row may have."""
        return _keys(self)


@lru_cache(1024)  # called for every row
def _keys(shape: Shape) -> frozenset[str]:
    return frozenset((*shape.required, *shape.optional, *ANYWHERE))


class Format:
    """A layout of rows: subclass it, set ``name`` and ``shapes``, write ``read``.

    class Qa(Format):
        name = "qa"
        shapes = (Shape("completion", required=("q", "a")),)

        def read(self, row, kind):
            return formats.join(formats.content(row, "q"), "q", {"completion": formats.content(row, "a")}, "a")
    """

    name: ClassVar[str]
    """The value of ``format:`` in a run file."""
    shapes: ClassVar[tuple[Shape, ...]]
    """The kinds of rows that it reads, and the keys of each."""

    class Config(base.Config):
        """Formats have no settings."""

    def __init__(self, config: base.Config | None = None) -> None:
        self.config = config or self.Config()
        self.kinds: tuple[Kind, ...] = KINDS

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Return the Record's fields of that kind. The required keys are there; this method checks everything else.

        Raises RowError, or any ValueError with a sentence for the user.
        """
        raise NotImplementedError

    def only(self, kinds: Iterable[Kind]) -> Self:
        """Return the same format, reading rows as one of these kinds."""
        other = copy.copy(self)
        other.kinds = tuple(kinds)
        return other

    def shape(self, row: Mapping[str, Any]) -> Shape | None:
        """Return the shape that reads most of the row's keys, None where none fits.

        Keys that are null count only if no shape fits without them, because Arrow adds such keys. A shape whose label
        would be neither true nor false comes last: such a column is no judgement of the answer.
        """
        given = {key for key, value in row.items() if value is not None}
        shapes = [s for s in self._shapes() if not (s.unless and given.issuperset(s.unless))]
        fitting = [s for s in shapes if given.issuperset(s.required)]
        fitting = fitting or [s for s in shapes if row.keys() >= set(s.required)]
        if len(fitting) < 2:
            return fitting[0] if fitting else None

        def rank(shape: Shape) -> tuple[bool, int]:
            judged = shape.kind != "unpaired" or any(is_boolean(row[key]) for key in shape.required)
            return judged, len(shape.keys & given)

        return max(fitting, key=rank)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Return True if the row has the keys of this format."""
        return self.shape(row) is not None

    def keys(self, row: Mapping[str, Any]) -> frozenset[str]:
        """Return the row's keys that would be read; the format that reads most of a row fits it best."""
        shape = self.shape(row)
        return shape.keys & row.keys() if shape else frozenset()

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """Convert one row to a Record. source: its place, ``train.jsonl:17``.

        Raises RowError, or any ValueError with a sentence for the user.
        """
        shape = self.shape(row)
        if shape is None:
            raise self._missing(row)
        columns = [key for key in SYSTEM if key not in (*shape.required, *shape.optional)]
        found, system = with_system(self.read(row, shape.kind), row, columns)
        if shape.kind == "preference" and found.get("chosen") == found.get("rejected"):
            raise RowError("same-answers", "is the same as chosen", "rejected")
        unread = set(shape.kept)
        if not system:
            unread.update(columns)
        if not reads_functions(row):
            unread.add("functions")
        taken = shape.keys - unread
        return Record(
            kind=shape.kind,
            source=source,
            tools=tools(row),
            chat_template_kwargs=structure(row, "chat_template_kwargs", dict) or {},
            columns={
                key: pruned(value) if key in shape.kept else value for key, value in row.items() if key not in taken
            },
            **found,
        )

    @property
    def known(self) -> frozenset[str]:
        """The keys that are read, over all shapes."""
        return frozenset[str]().union(*(shape.keys for shape in self._shapes()))

    def _shapes(self) -> list[Shape]:
        return [shape for shape in self.shapes if shape.kind in self.kinds]

    def _missing(self, row: Mapping[str, Any]) -> RowError:
        lacks = [[key for key in shape.required if key not in row] for shape in self._shapes()]
        lacks = [lacking for lacking in lacks if lacking]
        if not lacks:  # the row has the keys of some shape, and ``unless`` excludes it
            return RowError("mixed", f"is a row of another kind than {' or '.join(self.kinds)}")
        lacking = min(lacks, key=len)
        near = difflib.get_close_matches(lacking[0], row, n=1)
        return RowError("missing-field", f"is missing; the row has {near[0]!a}" if near else "is missing", lacking[0])
