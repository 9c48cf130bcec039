"""BFCL: its files, the rules of its checker on cases by hand, its means, and parity with bfcl-eval on the real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.plugins.evals.bfcl import BFCL, leaderboard
from align.plugins.evals.bfcl.checker import check_calls, dots_kept, dots_replaced
from align.plugins.evals.bfcl.decode import NoCalls, python_calls, tool_calls
from align.plugins.evals.bfcl.files import as_tool
from align.schemas.records import Content
from align.testing import ScriptedModel, run_eval
from benchmarks import bfcl_parity

WEATHER = {
    "name": "weather.get",
    "description": "Weather of a place.",
    "parameters": {
        "type": "dict",
        "properties": {
            "place": {"type": "string", "description": "City."},
            "days": {"type": "integer", "description": "Days ahead."},
            "share": {"type": "float", "description": "Share."},
            "box": {"type": "tuple", "items": {"type": "float"}, "description": "Corners."},
            "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags."},
            "filter": {"type": "dict", "properties": {"wind": {"type": "string"}}, "description": "Filter."},
            "rows": {"type": "array", "items": {"type": "dict"}, "description": "Rows."},
            "exact": {"type": "boolean", "description": "Exact."},
        },
        "required": ["place"],
    },
}
TIME = {
    "name": "time_in",
    "description": "Time.",
    "parameters": {"type": "dict", "properties": {"zone": {"type": "any"}}, "required": ["zone"]},
}
ANSWER: dict[str, Any] = {
    "weather.get": {
        "place": ["New York, N.Y.", "NYC"],
        "days": [3, ""],
        "share": [0.5, 2.0, ""],
        "box": [[1.0, 2.0], ""],
        "tags": [["Rain", "snow"], ""],
        "filter": [{"wind": ["high", "strong"], "unit": ["ms", ""]}, ""],
        "rows": [[{"a": [1]}, {"a": [2]}], ""],
        "exact": [True, ""],
    }
}


def judge(
    text: str, category: str = "simple_python", answers: Any = (ANSWER,), functions: Any = (WEATHER, TIME)
) -> bool:
    return check_calls(category, functions, python_calls(text), answers, dots_kept)


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ("place='nyc'", True),
        ("place='new york ny'", True),  # case, blanks and punctuation are not compared
        ("place='Boston'", False),
        ("place=NYC", True),  # a bare name is a string
        ("", False),  # required
        ("place='NYC', cloud=1", False),  # unexpected
        ("place='NYC', days=3", True),
        ("place='NYC', days='3'", False),
        ("place='NYC', days=3.0", False),
        ("place='NYC', days=True", False),
        ("place='NYC', share=2", True),  # an int is a float
        ("place='NYC', share=2 * 0.25", True),
        ("place='NYC', box=(1.0, 2.0)", True),  # a tuple is a list
        ("place='NYC', box=[1.0, 2.0]", True),
        ("place='NYC', box=(2.0, 1.0)", False),
        ("place='NYC', tags=['RAIN', 'snow']", True),
        ("place='NYC', tags=('Rain', 'snow')", False),
        ("place='NYC', tags=['snow', 'Rain']", False),
        ("place='NYC', tags=['Rain', 1]", False),
        ("place='NYC', filter={'wind': 'Strong'}", True),
        ("place='NYC', filter={'wind': 'high', 'unit': 'ms'}", True),
        ("place='NYC', filter={'unit': 'ms'}", False),  # wind may not be left out
        ("place='NYC', filter={'wind': 'high', 'x': 1}", False),
        ("place='NYC', rows=[{'a': 1}, {'a': 2}]", True),
        ("place='NYC', rows=[{'a': 2}, {'a': 1}]", False),
        ("place='NYC', rows=[{'a': 1}]", False),
        ("place='NYC', exact=True", True),
        ("place='NYC', exact='True'", False),
        ("place='NYC', exact=1", False),
    ],
)
def test_rules_for_arguments(arguments: str, right: bool) -> None:
    assert judge(f"[weather.get({arguments})]") is right


def test_an_omitted_parameter_must_be_one_that_may_be_omitted() -> None:
    answer = {"weather.get": {"place": ["NYC"], "days": [3]}}
    assert not judge("[weather.get(place='NYC')]", answers=[answer])
    assert judge("[weather.get(place='NYC', days=3)]", answers=[answer])


def test_names_have_dots_in_python_and_none_as_tools() -> None:
    calls = [{"weather_get": {"place": "NYC"}}]
    assert check_calls("simple_python", [WEATHER], calls, [ANSWER], dots_replaced)
    assert not check_calls("simple_python", [WEATHER], calls, [ANSWER], dots_kept)
    assert as_tool(WEATHER)["function"]["name"] == "weather_get"
    assert as_tool(WEATHER)["function"]["parameters"]["properties"]["box"] == {
        "type": "array", "items": {"type": "number"}, "description": "Corners.",
    }  # fmt: skip


def test_a_single_call_is_wanted_unless_the_category_is_parallel() -> None:
    assert not judge("[weather.get(place='NYC'), weather.get(place='NYC')]")
    assert not judge("[time_in(zone='x')]", "multiple")
    two = [ANSWER, {"time_in": {"zone": ["cet"]}}]
    assert judge("[time_in(zone='CET'), weather.get(place='NYC')]", "parallel_multiple", two)  # any order
    assert not judge("[time_in(zone='CET')]", "parallel_multiple", two)
    assert not judge("[time_in(zone='CET'), time_in(zone='CET')]", "parallel_multiple", two)


HOSTILE = [
    "[__import__('os').system('touch pwned')]",
    "[f(a=__import__('os').system('touch pwned'))]",
    "[f(a=(lambda: 1)())]",
    "[f(a=9**9**9)]",
    "[f(a=2**99999999)]",
    "[f(a='x' * 10**9)]",
    "[f(a=[1] * 10**9)]",
    "[f(**{'a': 1})]",
    "[f(a=open('/etc/passwd').read())]",
    "[f(a={[]: 1})]",
    "(" * 50_000,
    "[f(a=" + "-" * 60_000 + "1)]",
    "[" * 3000 + "]" * 3000,
    "[f(a=" + "9" * 5000 + ")]",
    "x" * 100_000,
    "\0", "[f(a=1)] and more", "",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_read_without_being_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        calls = python_calls(text)
    except NoCalls:
        calls = []
    assert not check_calls("simple_python", [WEATHER], calls, [ANSWER], dots_kept)
    with pytest.raises(NoCalls):
        raise NoCalls(str(tool_calls(text)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name":"g","arguments":{}}',
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
        '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}},'
        ' {"function": {"name": "g", "arguments": "{}"}}]',
        "[f(a=1), g()]",
    ],
)
def test_tool_calls_of_several_templates(text: str) -> None:
    assert tool_calls(text) == [{"f": {"a": 1}}, {"g": {}}]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of our own in the published form: V4's names, V2's question without turns, a system message."""
    ask = {"role": "user", "content": "Weather in NYC?"}
    time = {"time_in": {"zone": ["cet"]}}
    lines(tmp_path / "BFCL_v4_simple_python.json", [
        {"id": "simple_python_0", "question": [[ask]], "function": [WEATHER]},
        {"id": "simple_python_1", "question": [ask], "function": WEATHER},
    ])  # fmt: skip
    lines(tmp_path / "possible_answer" / "BFCL_v4_simple_python.json", [
        {"id": "simple_python_0", "ground_truth": [ANSWER]}, {"id": "simple_python_1", "ground_truth": ANSWER},
    ])  # fmt: skip
    system = {"role": "system", "content": "Be terse."}
    lines(tmp_path / "BFCL_v4_live_parallel_multiple.json", [
        {"id": "live_0", "question": [[system, ask]], "function": [WEATHER, TIME]},
    ])  # fmt: skip
    lines(tmp_path / "possible_answer" / "BFCL_v4_live_parallel_multiple.json", [
        {"id": "live_0", "ground_truth": [ANSWER, time]},
    ])  # fmt: skip
    lines(tmp_path / "BFCL_v4_irrelevance.json", [{"id": "irr_0", "question": [[ask]], "function": [TIME]}])
    lines(tmp_path / "BFCL_v4_live_relevance.json", [{"id": "rel_0", "question": [[ask]], "function": [WEATHER]}])
    return tmp_path


def perfect(prompt: Content, seed: int) -> str:
    system = str(prompt[0])
    if "Be terse." in system:
        return "[time_in(zone='CET'), weather.get(place='NYC')]"
    return "[weather.get(place='NYC')]" if "weather" in system else "None of them can."


def refuses(prompt: Content, seed: int) -> str:
    return "I cannot help with that."


def wrong(prompt: Content, seed: int) -> str:
    return "[time_in(zone=1)]"


@pytest.mark.parametrize(
    ("model", "score", "valid"),
    [(perfect, {"simple_python": 1, "live_parallel_multiple": 1, "irrelevance": 1, "live_relevance": 1}, 5),
     (refuses, {"simple_python": 0, "live_parallel_multiple": 0, "irrelevance": 1, "live_relevance": 0}, 2),
     (wrong, {"simple_python": 0, "live_parallel_multiple": 0, "irrelevance": 0, "live_relevance": 1}, 5)],
)  # fmt: skip
def test_models_of_known_score(data: Path, model: Callable[..., str], score: dict[str, float], valid: int) -> None:
    rows, metrics = run_eval("bfcl", {"data": str(data)}, ScriptedModel(model))
    assert {name: metrics[name] for name in score} == score
    assert sum(row.valid for row in rows) == valid
    live = (score["live_parallel_multiple"] + score["live_relevance"]) / 2
    non_live = (score["simple_python"] + score["irrelevance"]) / 2
    assert metrics["score"] == metrics["v3"] == (live + non_live) / 2


def test_native_tools_are_offered_through_the_template(data: Path) -> None:
    call = '<tool_call>{"name": "weather_get", "arguments": {"place": "NYC"}}</tool_call>'
    model = ScriptedModel(lambda prompt, seed: call)
    settings = {"data": str(data), "mode": "tools", "categories": ["simple_python"]}
    rows, metrics = run_eval("bfcl", settings, model)
    assert metrics["score"] == 1
    assert rows[0].extracted == "[{'weather_get': {'place': 'NYC'}}]"
    assert [tool["function"]["name"] for tool in model.asked[0].tools] == ["weather_get"]  # type: ignore[union-attr]


def test_the_means_of_the_leaderboard() -> None:
    scores = {
        "simple_python": [1.0, 0.0], "multiple": [1.0], "parallel": [0.0], "parallel_multiple": [1.0],
        "irrelevance": [0.0, 1.0, 1.0, 0.0], "live_simple": [1.0, 1.0, 0.0], "live_multiple": [0.0],
        "live_parallel": [1.0], "live_parallel_multiple": [0.0], "live_irrelevance": [1.0, 1.0],
        "live_relevance": [0.0],
    }  # fmt: skip
    found = leaderboard(scores)
    assert found["non_live"] == pytest.approx((0.5 + 1 + 0 + 1 + 0.5) / 5)
    assert found["live"] == pytest.approx(5 / 9)
    assert found["v3"] == pytest.approx((found["non_live"] + 5 / 9) / 2)
    columns = [(0.5 + 2 / 3) / 2, (1 + 0) / 2, (0 + 1) / 2, (1 + 0) / 2, (0.5 + 1) / 2, 0]
    assert found["v2"] == pytest.approx(sum(columns) / 6)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: (data / "possible_answer" / "BFCL_v4_simple_python.json").unlink(), "has no file of the cat"),
        (lambda data: lines(data / "BFCL_v3_simple.json", [{"id": "a"}]), "several files"),
        (lambda data: lines(data / "BFCL_v4_irrelevance.json", [{"id": "a"}]), "is no question of BFCL"),
        (lambda data: lines(data / "BFCL_v4_irrelevance.json",
                            [{"id": "a", "question": [[{}], [{}]], "function": [TIME]}]), "single turn"),
        (lambda data: lines(data / "possible_answer" / "BFCL_v4_simple_python.json",
                            [{"id": "simple_python_0", "ground_truth": [{"other": {}}]}]), "not on offer"),
        (lambda data: lines(data / "possible_answer" / "BFCL_v4_simple_python.json",
                            [{"id": "x", "ground_truth": [ANSWER]}]), "has no answers"),
    ],
)  # fmt: skip
def test_files_of_another_form_are_refused(data: Path, change: Callable[[Path], None], fault: str) -> None:
    change(data)
    with pytest.raises(AlignError, match=fault):
        BFCL(BFCL.Config(data=str(data))).load()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="multi_turn_base"):
        BFCL.Config(data="x", categories=["multi_turn_base"])
    with pytest.raises(ValueError, match="temprature"):
        BFCL.Config(data="x", sampling={"temprature": 0})
    with pytest.raises(AlignError, match="is no directory"):
        BFCL(BFCL.Config(data="/nowhere")).load()


def test_verdicts_equal_those_of_bfcl_eval_on_a_part_of_its_data() -> None:
    """``python -m benchmarks.bfcl_parity`` does the same for all of it; the committed figures are its."""
    try:
        place = bfcl_parity.fetch()
    except OSError as error:
        pytest.skip(str(error))
    found = bfcl_parity.compare(place, every=40)
    assert found["differ"] == []
    assert found["total"]["replies"] > 5000 and found["total"].get("theirs raised", 0) < 100
    whole = json.loads(bfcl_parity.RESULT.read_text(encoding="utf-8"))
    assert whole["differ"] == [] and whole["total"]["cases"] == 3491
