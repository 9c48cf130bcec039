"""Every row format, by hand: what is recognised, what it becomes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.data import formats
from align.core.data.formats import KINDS
from align.core.data.rows import BadRow, RowError
from align.core.data.sources import GoodRow, Reading
from align.core.plugin_system import registry
from align.schemas.errors import AlignError
from align.schemas.records import Kind, Record
from align.schemas.run import Source


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(
    tmp_path: Path, rows: Sequence[Any], kinds: Sequence[Kind] = KINDS, format: str = "auto", **columns: str
) -> list[Record | BadRow]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = Reading(Source(path=str(path), format=format, columns=columns), kinds)
    return [item.record if isinstance(item, GoodRow) else item for item in reading.rows()]


def one(
    tmp_path: Path, row: Mapping[str, Any], kinds: Sequence[Kind] = KINDS, format: str = "auto", **columns: str
) -> Record:
    [found] = read(tmp_path, [row], kinds, format, **columns)
    assert isinstance(found, Record), found
    return found


def v1(role: str, text: str, weight: float) -> dict[str, Any]:
    """A message as LLaMA-Factory's new rows have it."""
    return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}


SAYS = [user("hi"), assistant("hello")]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("text", {"text": "a b"}, {"kind": "text", "text": "a b"}),
    ("messages", {"messages": SAYS}, {"kind": "text", "text": SAYS}),
    ("messages as JSON", {"messages": json.dumps(SAYS)}, {"kind": "text", "text": SAYS}),
    ("prompt", {"prompt": "q", "solution": "4"}, {"kind": "prompt", "prompt": "q", "columns": {"solution": "4"}}),
    ("conversational prompt", {"prompt": [user("q")]}, {"kind": "prompt", "prompt": [user("q")]}),
    (
        "prompt and completion",
        {"prompt": "q", "completion": " a"},
        {"kind": "completion", "prompt": "q", "completion": " a"},
    ),
    (
        "both conversational",
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"kind": "completion", "prompt": [user("q")], "completion": [assistant("a")]},
    ),
    (
        "conversational prompt, plain completion",
        {"prompt": [user("q")], "completion": "a"},
        {"kind": "completion", "prompt": [user("q")], "completion": [assistant("a")]},
    ),
    (
        "completion that repeats the prompt",
        {"prompt": [user("q")], "completion": [user("q"), assistant("a")]},
        {"kind": "completion", "prompt": [user("q")], "completion": [assistant("a")]},
    ),
    (
        "preference",
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2},
        {"kind": "preference", "prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0},
    ),
    (
        "implicit prompt of messages",
        {"chosen": [system("s"), user("q"), assistant("a")], "rejected": [system("s"), user("q"), assistant("b")]},
        {
            "kind": "preference",
            "prompt": [system("s"), user("q")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        },
    ),
    (
        "implicit prompt of text",
        {"chosen": "Human: q\n\nAssistant: I would", "rejected": "Human: q\n\nAssistant: It is"},
        {"kind": "preference", "prompt": "Human: q\n\nAssistant:", "chosen": " I would", "rejected": " It is"},
    ),
    (
        "UltraFeedback",
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "score": 8},
        {
            "kind": "preference",
            "prompt": [user("q")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
            "columns": {"score": 8},
        },
    ),
    (
        "unpaired",
        {"prompt": "q", "completion": "a", "label": False},
        {"kind": "unpaired", "prompt": "q", "completion": "a", "label": False},
    ),
    (
        "tools and template variables",
        {"messages": SAYS, "tools": json.dumps([CALL]), "chat_template_kwargs": {"enable_thinking": False}},
        {"kind": "text", "text": SAYS, "tools": [CALL], "chat_template_kwargs": {"enable_thinking": False}},
    ),
    (
        "tool calls, their arguments as OpenAI spells them",
        {
            "messages": [
                user("q"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
                },
                {"role": "tool", "name": "look", "content": ""},
                assistant("a"),
            ]
        },
        {
            "kind": "text",
            "text": [
                user("q"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "name": "look", "content": ""},
                assistant("a"),
            ],
        },
    ),
    (
        "ShareGPT",
        {"id": "x_0", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"kind": "text", "text": SAYS, "columns": {"id": "x_0"}},
    ),
    (
        "ShareGPT with tools",
        {
            "system": "s",
            "tools": "",
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
        },
        {
            "kind": "text",
            "text": [
                system("s"),
                user("q"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "1"},
                assistant("a"),
            ],
        },
    ),
    ("ShareGPT with OpenAI's keys", {"conversations": SAYS}, {"kind": "text", "text": SAYS}),
    (
        "ShareGPT preference",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"kind": "preference", "prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    ),
    (
        "ShareGPT unpaired",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
        {"kind": "unpaired", "prompt": [user("q")], "completion": [assistant("a")], "label": True},
    ),
    (
        "Alpaca",
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"kind": "completion", "prompt": [user("Add.\n1 1")], "completion": [assistant("2")]},
    ),
    (
        "Alpaca with all its columns",
        {"instruction": "Add.", "input": "", "output": "2", "system": "s", "history": [["q", "a"]]},
        {
            "kind": "completion",
            "prompt": [system("s"), user("q"), assistant("a"), user("Add.")],
            "completion": [assistant("2")],
        },
    ),
    (
        "Alpaca preference",
        {"instruction": "Add.", "input": "", "chosen": "2", "rejected": "3"},
        {"kind": "preference", "prompt": [user("Add.")], "chosen": [assistant("2")], "rejected": [assistant("3")]},
    ),
    (
        "Alpaca unpaired",
        {"instruction": "Add.", "output": "2", "kto_tag": "false"},
        {"kind": "unpaired", "prompt": [user("Add.")], "completion": [assistant("2")], "label": False},
    ),
    (
        "veRL",
        {
            "data_source": "gsm8k",
            "prompt": [user("q")],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": 0},
        },
        {
            "kind": "prompt",
            "prompt": [user("q")],
            "columns": {
                "solution": "4",
                "data_source": "gsm8k",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0},
            },
        },
    ),
    (
        "Alpaca prompt",
        {"instruction": "Add.", "input": "1 1", "solution": "2"},
        {"kind": "prompt", "prompt": [user("Add.\n1 1")], "columns": {"solution": "2"}},
    ),
    (
        "judged messages",
        {"messages": [*SAYS, user("q"), assistant("a")], "label": False},
        {"kind": "unpaired", "prompt": [*SAYS, user("q")], "completion": [assistant("a")], "label": False},
    ),
    (
        "ms-swift preference",
        {"messages": [user("q"), assistant("a")], "rejected_response": "b", "margin": 1},
        {
            "kind": "preference",
            "prompt": [user("q")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
            "margin": 1.0,
        },
    ),
    (
        "LLaMA-Factory v1 preference",
        {
            "chosen_messages": [v1("user", "q", 0.0), v1("assistant", "a", 1.0)],
            "rejected_messages": [v1("user", "q", 0.0), v1("assistant", "b", 1.0)],
        },
        {
            "kind": "preference",
            "prompt": [user("q")],
            "chosen": [assistant("a") | {"weight": 1.0}],
            "rejected": [assistant("b") | {"weight": 1.0}],
        },
    ),
    (
        "LLaMA-Factory v1 messages",
        {
            "messages": [
                v1("system", "s", 0.0),
                v1("user", "q", 0.0),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "hm"},
                        {"type": "tool_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
                    ],
                    "loss_weight": 0.5,
                },
                v1("tool", "1", 0.0),
                v1("assistant", "a", 1.0),
            ],
            "tools": "[]",
        },
        {
            "kind": "text",
            "text": [
                system("s"),
                user("q"),
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL], "weight": 0.5},
                {"role": "tool", "content": "1"},
                assistant("a") | {"weight": 1.0},
            ],
        },
    ),
    (
        "ms-swift rounds",
        {"system": "s", "conversation": [{"human": "hi", "assistant": "hello"}, {"human": "q", "assistant": "a"}]},
        {"kind": "text", "text": [system("s"), *SAYS, user("q"), assistant("a")]},
    ),
    ("Capybara", {"conversation": [{"input": "hi", "output": "hello"}]}, {"kind": "text", "text": SAYS}),
    ("LMSYS", {"conversation": SAYS, "model": "m"}, {"kind": "text", "text": SAYS, "columns": {"model": "m"}}),
    (
        "judged ShareGPT",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": True},
        {"kind": "unpaired", "prompt": [user("q")], "completion": [assistant("a")], "label": True},
    ),
    (
        "ms-swift agent: calls in a row are made at once",
        {
            "tools": json.dumps([{"name": "look", "arguments": {"at": 1}, "parameters": {}}]),
            "messages": [
                user("q"),
                {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": 1}}', "loss": False},
                {"role": "tool_call", "content": '{"name": "look", "arguments": "{\\"at\\": 1}"}'},
                {"role": "tool_response", "content": "1"},
                {"role": "tool_response", "content": "2"},
                assistant("a"),
            ],
        },
        {
            "kind": "text",
            "tools": [{"type": "function", "function": {"name": "look", "arguments": {"at": 1}, "parameters": {}}}],
            "text": [
                user("q"),
                {"role": "assistant", "content": "", "tool_calls": [CALL, CALL], "weight": 0.0},
                {"role": "tool", "content": "1"},
                {"role": "tool", "content": "2"},
                assistant("a"),
            ],
        },
    ),
    (
        "Anthropic",
        {
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                user("q"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]},
                        {"type": "text", "text": "So?"},
                    ],
                },
                assistant("a"),
            ],
        },
        {
            "kind": "text",
            "text": [
                system("s"),
                user("q"),
                assistant("I look.") | {"tool_calls": [{"id": "t1", **CALL}]},
                {"role": "tool", "content": "1", "tool_call_id": "t1"},
                user("So?"),
                assistant("a"),
            ],
        },
    ),
    (
        "OpenAI before tools",
        {
            "messages": [
                user("q"),
                {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": 1}'}},
                {"role": "function", "name": "look", "content": "1"},
                {"role": "assistant", "content": "a", "weight": 1},
            ],
            "functions": [{"name": "look", "parameters": {"type": "object"}}],
        },
        {
            "kind": "text",
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
            "text": [
                user("q"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "name": "look", "content": "1"},
                assistant("a") | {"weight": 1.0},
            ],
        },
    ),
    (
        "a system prompt in a column of its own makes strings a conversation",
        {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "kind": "preference",
            "prompt": [system("s"), user("q")],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        },
    ),
    (
        "an empty one too, or the rows of one file would be of two styles",
        {"system_prompt": "", "prompt": "q", "completion": "a"},
        {"kind": "completion", "prompt": [user("q")], "completion": [assistant("a")]},
    ),
    (
        "a conversation that has one keeps its own",
        {"system": "other", "messages": [system("s"), *SAYS]},
        {"kind": "text", "text": [system("s"), *SAYS]},
    ),
    (
        "xLAM",
        {
            "id": 1,
            "query": "q",
            "answers": '[{"name": "look", "arguments": {"at": 1}}]',
            "tools": '[{"name": "look", "parameters": {}}]',
        },
        {
            "kind": "completion",
            "prompt": [user("q")],
            "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
            "columns": {"id": 1},
        },
    ),
    (
        "Magpie preference",
        {"instruction": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"kind": "preference", "prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    ),
    (
        "columns that hold no pictures, tags that are no places for them, null and NaN where nobody reads",
        {
            "messages": [
                user("Is `<image>` a tag? <video></video> is. So is <image>x</image>.\n```\n<audio>\n```"),
                {**assistant("<image>"), "tool_calls": None, "weight": None, "name": None},
            ],
            "images": [],
            "image": {"bytes": None, "path": ""},
            "video": None,
            "videos": [None],
            "audio": False,
            "label": None,
            "score": float("nan"),
            "more": {"a": [float("nan"), 1]},
        },
        {
            "kind": "text",
            "text": [
                user("Is `<image>` a tag? <video></video> is. So is <image>x</image>.\n```\n<audio>\n```"),
                assistant("<image>"),
            ],
            "columns": {
                "images": [],
                "image": {"bytes": None, "path": ""},
                "video": None,
                "videos": [None],
                "audio": False,
                "label": None,
                "score": None,
                "more": {"a": [None, 1]},
            },
        },
    ),
    (
        "a label that is no judgement",
        {"messages": SAYS, "label": "math"},
        {"kind": "text", "text": SAYS, "columns": {"label": "math"}},
    ),
    ("OpenRLHF", {"input": "q", "output": "a"}, {"kind": "completion", "prompt": "q", "completion": "a"}),
    (
        "OpenRLHF prompt",
        {"input": "q", "label": "4"},
        {"kind": "prompt", "prompt": "q", "columns": {"label": "4", "solution": "4"}},
    ),
    (
        "OpenRLHF preference",
        {"input": "q", "chosen": "a", "rejected": "b"},
        {"kind": "preference", "prompt": "q", "chosen": "a", "rejected": "b"},
    ),
    (
        "OpenRLHF unpaired",
        {"input": "q", "output": "a", "label": 1},
        {"kind": "unpaired", "prompt": "q", "completion": "a", "label": True},
    ),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_recognised_by_its_keys(tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert one(tmp_path, row) == Record(source=f"{tmp_path / 'rows.jsonl'}:1", **expected)


def test_every_format_is_among_the_cases(tmp_path: Path) -> None:
    forms = set()
    for _, row, _ in CASES:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        form = Reading(Source(path=str(tmp_path / "rows.jsonl"))).form
        assert form is not None
        forms.add((form.format.name, form.kind))
    known = {(name, shape.kind) for name in registry.names("format") for shape in registry.get("format", name).shapes}
    assert forms == known


class TestRecognition:
    def test_ambiguity_names_both_and_the_fix(self, tmp_path: Path) -> None:
        with pytest.raises(AlignError, match=r"could be of format 'messages' or 'prompt'\n.*format: messages"):
            one(tmp_path, {"prompt": "q", "messages": SAYS})
        assert one(tmp_path, {"prompt": "q", "messages": SAYS}, format="messages").text == SAYS

    def test_what_is_wanted_decides(self, tmp_path: Path) -> None:
        row = {"prompt": "q", "messages": SAYS, "chosen": "a", "rejected": "b"}  # UltraFeedback has all of these
        assert one(tmp_path, row, ["preference"]).chosen == "a"
        assert one(tmp_path, row, ["prompt"]).prompt == "q"
        assert one(tmp_path, row, ["text", "completion"]).text == SAYS

    def test_columns_of_another_kind_are_handed_on(self, tmp_path: Path) -> None:
        record = one(tmp_path, {"prompt": "q", "completion": "a", "label": True}, ["completion"])
        assert (record.kind, record.completion, record.columns) == ("completion", "a", {"label": True})

    def test_a_null_key_makes_no_row_of_another_kind(self) -> None:
        shape = registry.get("format", "messages")().shape({"messages": SAYS, "label": None})
        assert shape is not None and shape.kind == "text"

    def test_wrong_kind(self, tmp_path: Path) -> None:
        with pytest.raises(AlignError, match=r"holds text rows \(format messages\); preference rows are wanted"):
            one(tmp_path, {"messages": SAYS}, ["preference"])

    def test_unknown_keys(self, tmp_path: Path) -> None:
        with pytest.raises(
            AlignError, match=r"columns 'question', 'answer'.*\n.*{prompt: question, completion: answer}"
        ):
            one(tmp_path, {"question": "q", "answer": "a"}, ["completion"])
        with pytest.raises(
            AlignError, match=r"columns 'a', 'b'.*\n.*Known: .*alpaca \(completion\): instruction, output"
        ):
            one(tmp_path, {"a": 1, "b": 2})

    def test_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(AlignError, match=r"no format is called 'sharegbt'\n.*sharegpt"):
            one(tmp_path, {"text": "a"}, format="sharegbt")

    def test_the_majority_decides_not_the_first_row(self, tmp_path: Path) -> None:
        found = read(tmp_path, [{"text": "a"}, {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
        assert [getattr(item, "kind", None) for item in found] == ["mixed", "completion", "completion"]

    def test_missing_field_names_the_near_one(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "completion": "b"}] * 2 + [{"prompt": "a", "completoin": "b"}]
        assert str(read(tmp_path, rows)[2]).endswith(
            "rows.jsonl:3: completion: is missing; the row has 'completoin' [missing-field]"
        )

    def test_plugin_that_fails_to_recognise_stops_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(registry.get("format", "prompt"), "shapes")
        assert one(tmp_path, {"text": "a"}).text == "a"

    def test_plugin_that_fails_is_told_with_the_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: object, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
            if row["text"] == "b":
                raise KeyError("b")
            raise ValueError("this is no limerick")

        monkeypatch.setattr(registry.get("format", "text"), "read", broken)
        found = read(tmp_path, [{"text": "a"}, {"text": "b"}])
        assert [(item.kind, item.what) for item in found if isinstance(item, BadRow)] == [
            ("refused", "this is no limerick"),
            ("refused", "makes its format plugin fail: KeyError: 'b'"),
        ]


class TestJudgedAnswers:
    """What KTO would take as a bad answer, SFT must not take as a good one."""

    GOOD: ClassVar = [
        {"messages": SAYS, "label": True},
        {"conversations": SAYS, "kto_tag": "true"},
        {"conversations": SAYS, "label": 1},
        {"prompt": "q", "completion": "a", "label": True},
        {"instruction": "q", "output": "a", "kto_tag": True},
        {"input": "q", "output": "a", "label": 1},
    ]

    @pytest.mark.parametrize("row", GOOD, ids=lambda row: ",".join(row))
    def test_bad_ones_are_refused(self, tmp_path: Path, row: dict[str, Any]) -> None:
        *_, label = row
        kinds: list[Kind] = ["text", "completion"]
        good, bad = read(tmp_path, [row, {**row, label: not formats.boolean(row, label)}], kinds)
        assert isinstance(good, Record) and isinstance(bad, BadRow)
        assert (bad.kind, bad.field) == ("bad-answer", label) and "kto" in bad.what
        assert [r.label for r in read(tmp_path, [row], ["unpaired"]) if isinstance(r, Record)] == [True]

    def test_labels_of_texts_are_no_judgement(self, tmp_path: Path) -> None:
        assert one(tmp_path, {"text": "a", "label": False}, ["text"]).columns == {"label": False}
        assert one(tmp_path, {"messages": SAYS, "label": 7}, ["text"]).columns == {"label": 7}
        renamed = read(tmp_path, [{"messages": SAYS, "label": 0}], ["text"], topic="label")
        assert [r.columns for r in renamed if isinstance(r, Record)] == [{"topic": 0}]


class TestMedia:
    PLACES = (
        "<image>Who?",
        "Who?<image>",
        "Compare <image> and <image>.",
        "<video><audio>What?",
        "What?\n<video>\n",
        "<image_1> What?",
        "<img>https://example.org/a.png</img>What?",
    )

    @pytest.mark.parametrize("text", PLACES)
    def test_a_place_for_a_picture_is_refused(self, tmp_path: Path, text: str) -> None:
        rows = [{"messages": SAYS}, {"messages": [user(text), assistant("a")]}]
        bad = read(tmp_path, rows)[1]
        assert isinstance(bad, BadRow) and (bad.kind, bad.field) == ("media", "messages[0].content")
        pair = read(tmp_path, [{"prompt": "q", "completion": "a"}, {"prompt": text, "completion": "a"}])[1]
        assert isinstance(pair, BadRow) and (pair.kind, pair.field) == ("media", "prompt")

    @pytest.mark.parametrize("key", formats.MEDIA)
    def test_a_column_is_refused_and_may_be_renamed(self, tmp_path: Path, key: str) -> None:
        rows = [{"messages": SAYS}, {"messages": SAYS, key: ["a"]}]
        bad = read(tmp_path, rows)[1]
        assert isinstance(bad, BadRow) and (bad.kind, bad.field) == ("media", key)
        assert f"columns: {{unread: {key}}}" in bad.what
        assert len([r for r in read(tmp_path, rows, unread=key) if isinstance(r, Record)]) == 2

    def test_rows_of_verl_too(self, tmp_path: Path) -> None:
        row = {"data_source": "geo3k", "prompt": [user("q")], "reward_model": {"style": "rule", "ground_truth": "4"}}
        good, bad = read(tmp_path, [{**row, "images": []}, {**row, "images": [{"bytes": "aGk="}]}])
        assert isinstance(good, Record) and isinstance(bad, BadRow) and (bad.kind, bad.field) == ("media", "images")

    @pytest.mark.parametrize("kind", ["image", "image_url", "input_image", "video", "video_url", "input_audio", "file"])
    def test_a_part_is_refused(self, tmp_path: Path, kind: str) -> None:
        message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, "value": "a"}]}
        bad = read(tmp_path, [{"messages": SAYS}, {"messages": [message, assistant("a")]}])[1]
        assert isinstance(bad, BadRow) and (bad.kind, bad.field) == ("media", "messages[0].content[1]")


class TestWeights:
    @pytest.mark.parametrize(
        ("given", "weight"),
        [
            ({"train": False}, 0.0),
            ({"train": True}, 1.0),
            ({"weight": 0}, 0.0),
            ({"weight": 0.5}, 0.5),
            ({"loss_weight": 1.0}, 1.0),
            ({"loss": False, "loss_scale": 2.0}, 0.0),
            ({"loss": True, "loss_scale": 2.0}, 2.0),
            ({"train": False, "weight": 1}, 0.0),
            ({"weight": None}, None),
        ],
        ids=str,
    )
    def test_one_rule_for_all_spellings(self, tmp_path: Path, given: dict[str, Any], weight: float | None) -> None:
        expected = [user("hi"), assistant("hello") | ({} if weight is None else {"weight": weight})]
        assert one(tmp_path, {"messages": [user("hi"), assistant("hello") | given]}).text == expected
        turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", **given}]
        assert one(tmp_path, {"conversations": turns}).text == expected
        parts = [{"type": "text", "text": "hel", **given}, {"type": "text", "text": "lo", **given}]
        assert one(tmp_path, {"messages": [user("hi"), assistant(parts)]}).text == expected

    def test_of_others_than_the_assistant_only_0_is_taken(self, tmp_path: Path) -> None:
        zero = {"messages": [user("hi") | {"train": False, "weight": 0.0}, assistant("hello")]}
        assert one(tmp_path, zero).text == SAYS
        bad = read(tmp_path, [zero, {"messages": [user("hi") | {"train": True}, assistant("hello")]}])[1]
        assert isinstance(bad, BadRow) and bad.field == "messages[0].train" and "only what the assistant" in bad.what


class TestRefusedWithAWayOn:
    @pytest.mark.parametrize(
        ("row", "kinds", "what"),
        [
            ({"input_ids": [1], "labels": [1]}, ["text"], "these are tokens already"),
            ({"segments": [{"label": True, "text": "a"}]}, ["text"], "messages with train"),
            ({"query": "q", "response": "a"}, ["completion"], "{instruction: query, output: response}"),
            ({"response": "a"}, ["text", "completion"], "{text: response}"),
            ({f"a/{i}.json": {"problem": "q"} for i in range(100)}, ["text"], "write its values as an array"),
            (
                {"query": "q", "response": "a", "history": []},
                ["completion"],
                "{instruction: query, output: response}",
            ),
            (
                {"instruction": "q", "context": "c", "response": "a"},
                ["completion"],
                "{output: response, input: context}",
            ),
            ({"problem": "q", "solution": "a"}, ["completion"], "{prompt: problem, completion: solution}"),
            ({"problem": "q", "solution": "a"}, ["prompt"], "{prompt: problem}"),
            ({"messages": [user("q")]}, ["prompt"], "{prompt: messages}"),
            ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, ["prompt"], "{prompt: question}"),
        ],
    )
    def test_says_how(self, tmp_path: Path, row: dict[str, Any], kinds: list[Kind], what: str) -> None:
        with pytest.raises(AlignError) as caught:
            one(tmp_path, row, kinds)
        assert what in str(caught.value)

    def test_what_is_said_works(self, tmp_path: Path) -> None:
        swift = {"system": "s", "query": "q", "response": "a", "history": [["hi", "hello"]]}
        record = one(tmp_path, swift, instruction="query", output="response")
        assert (record.prompt, record.completion) == ([system("s"), *SAYS, user("q")], [assistant("a")])
        assert one(tmp_path, {"messages": [user("q")]}, ["prompt"], prompt="messages").prompt == [user("q")]

    def test_prompts_of_preferences_are_no_conversations(self, tmp_path: Path) -> None:
        row = {"conversations": [*SAYS, user("q")], "chosen": assistant("a"), "rejected": assistant("b")}
        with pytest.raises(AlignError, match="holds preference rows"):
            one(tmp_path, row, ["text", "completion"])

    def test_what_answers_share_is_no_prompt_beside_a_question(self, tmp_path: Path) -> None:
        row = {"system": "s", "question": "q", "chosen": "It is a", "rejected": "It is b"}
        [bad] = read(tmp_path, [row])
        assert isinstance(bad, BadRow) and bad.kind == "missing-field" and "columns: {prompt: question}" in bad.what
        record = one(tmp_path, row, prompt="question")
        assert (record.prompt, record.chosen) == ([system("s"), user("q")], [assistant("It is a")])

    def test_hundreds_of_columns_are_not_all_named(self, tmp_path: Path) -> None:
        with pytest.raises(AlignError) as caught:
            one(tmp_path, {f"k{i}": 1 for i in range(500)})
        assert "'k11' and 488 more" in str(caught.value) and "k12'" not in str(caught.value)


class TestColumns:
    def test_renamed(self, tmp_path: Path) -> None:
        record = one(tmp_path, {"question": "q", "reply": "a", "n": 1}, prompt="question", completion="reply")
        assert (record.prompt, record.completion, record.columns) == ("q", "a", {"n": 1})

    def test_swapped(self, tmp_path: Path) -> None:
        record = one(tmp_path, {"prompt": "old", "question": "q", "completion": "a"}, prompt="question", old="prompt")
        assert (record.prompt, record.columns) == ("q", {"old": "old"})

    def test_nothing_is_overwritten_in_silence(self, tmp_path: Path) -> None:
        good = {"question": "q", "completion": "a"}
        found = read(tmp_path, [good, {**good, "prompt": "p"}], prompt="question")
        assert str(found[1]).endswith(
            "is there in addition to 'question', which is to be read as 'prompt' [duplicate-key]"
        )

    def test_faults_speak_of_the_files_names(self, tmp_path: Path) -> None:
        found = read(tmp_path, [{"q": [user("q")], "a": "a"}, {"q": [user("")], "a": "a"}], prompt="q", completion="a")
        assert str(found[1]).endswith("rows.jsonl:2: q[0].content: is empty [empty]")


class TestTypes:
    @pytest.mark.parametrize(("value", "expected"), [(True, True), (0, False), ("TRUE", True), ("0", False)], ids=repr)
    def test_boolean(self, value: object, expected: bool) -> None:
        assert formats.boolean({"label": value}, "label") is expected

    @pytest.mark.parametrize("value", ["yes", 2, 0.0, 1.0, [], {}], ids=repr)
    def test_no_boolean(self, value: object) -> None:
        with pytest.raises(RowError, match="not true or false"):
            formats.boolean({"label": value}, "label")

    @pytest.mark.parametrize(
        ("value", "expected"), [(1, 1.0), (-0.5, -0.5), ("2e-1", 0.2), ("", None), (None, None)], ids=repr
    )
    def test_number(self, value: object, expected: float | None) -> None:
        assert formats.number({"margin": value}, "margin") == expected

    @pytest.mark.parametrize("value", ["nan", "1e999", float("inf"), 10**400, False, [1]], ids=lambda v: repr(v)[:9])
    def test_no_number(self, value: object) -> None:
        with pytest.raises(RowError, match="not a finite number"):
            formats.number({"margin": value}, "margin")


class TestOrder:
    @pytest.mark.parametrize(
        ("messages", "what"),
        [
            ([user("a")], "has no assistant message"),
            ([assistant("a")], "has nothing but assistant messages"),
            ([system("a"), user("b")], "has no assistant message"),
            ([user("a"), {"role": "tool", "content": "1"}, assistant("b")], "no assistant message comes before it"),
        ],
    )
    def test_broken(self, tmp_path: Path, messages: list[Any], what: str) -> None:
        found = read(tmp_path, [{"messages": SAYS}, {"messages": messages}])[1]
        assert isinstance(found, BadRow) and found.kind == "message-order" and what in found.what

    def test_string_prompt_must_be_what_the_answers_follow(self, tmp_path: Path) -> None:
        pair = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
        found = read(tmp_path, [{"prompt": "q", **pair}, {"prompt": "other", **pair}])[1]
        assert isinstance(found, BadRow) and (found.kind, found.field) == ("message-order", "prompt")

    def test_answers_that_part_at_the_users_turn(self, tmp_path: Path) -> None:
        good = {"chosen": [*SAYS, user("q"), assistant("a")], "rejected": [*SAYS, user("q"), assistant("b")]}
        bad = {"chosen": [*SAYS, user("q"), assistant("a")], "rejected": [*SAYS, user("r"), assistant("b")]}
        found = read(tmp_path, [good, bad])[1]
        assert isinstance(found, BadRow) and (found.kind, found.field) == ("message-order", "chosen")

    def test_one_answer_is_the_beginning_of_the_other(self, tmp_path: Path) -> None:
        good = {"chosen": "a b", "rejected": "a c"}
        found = read(tmp_path, [good, {"chosen": "a b\n", "rejected": "a b\nc"}])[1]
        assert isinstance(found, BadRow) and (found.kind, found.field) == ("empty", "chosen")


class TestSharedPrompt:
    @pytest.mark.parametrize(
        ("chosen", "rejected", "prompt"),
        [
            ("the cat sat", "the cat ran", "the cat"),
            ("the cat sat", "the cats ran", "the"),  # not inside a word
            ("Q\n\nyes", "Q\n\nno", "Q\n\n"),  # a newline stays with the prompt
            ("Q:a", "Q:b", "Q:"),  # no white space to cut at
            ("yes", "no", ""),
            (" yes", " no", ""),
            ("a b", "a b c", "a"),
        ],
    )
    def test_text(self, chosen: str, rejected: str, prompt: str) -> None:
        assert chosen[: formats.shared_prompt(chosen, rejected)] == prompt

    @given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
    def test_is_shared_and_breaks_no_word(self, shared: str, chosen: str, rejected: str) -> None:
        chosen, rejected = shared + chosen, shared + rejected
        cut = formats.shared_prompt(chosen, rejected)
        prompt = chosen[:cut]
        assert rejected[:cut] == prompt
        if len(prompt.split()) > 1:
            assert prompt[-1].isspace() or chosen[cut] == rejected[cut] == " "

    @given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
    def test_messages(self, chosen: list[str], rejected: list[str]) -> None:
        first, second = [user(text) for text in chosen], [user(text) for text in rejected]
        naive = 0
        while naive < min(len(first), len(second)) and first[naive] == second[naive]:
            naive += 1
        assert formats.shared_prompt(first, second) == naive


def test_source_rows_are_not_changed_by_reading() -> None:
    row = {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    before = json.dumps(row)
    registry.get("format", "preference")().convert(row, "")
    assert json.dumps(row) == before


def test_read_rows_names_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": ""}\n')
    good, bad = Reading(Source(path=str(path))).rows()
    assert isinstance(good, GoodRow) and good.record.source == f"{path}:1"
    assert str(bad) == f"{path}:3: text: is empty [empty]"


def test_the_documented_format_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    scope: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], scope)
    registered: list[Any] = []
    scope["register_formats"](registered.append)
    [made] = registered
    known = registry.working("format") | {made.name: made}
    monkeypatch.setattr(registry, "working", lambda kind: known)
    found = read(tmp_path, [{"q": "a", "a": "b", "n": 1}, {"q": "a", "a": ""}, {"q": "a"}, {"text": "a"}])
    assert found[0] == Record("completion", f"{tmp_path}/rows.jsonl:1", prompt="a", completion="b", columns={"n": 1})
    assert [(b.kind, b.field) for b in found[1:] if isinstance(b, BadRow)] == [
        ("empty", "a"),
        ("missing-field", "a"),
        ("mixed", ""),
    ]
