"""NexusBench's matcher: bound to signatures, never run; models of known score on data of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align import AlignError
from align.plugins.evals.nexus import bare
from align.plugins.evals.nexus.matcher import Unreadable, read_calls, read_functions
from align.schemas.records import Content
from align.testing import ScriptedModel, run_eval

STUBS = '''
import nothing_that_exists
from typing import List
print(undefined)

def find(term: str, limit: int = 10, *, exact: bool = False, tags: List[str] = None):
    """Find things.

    term: what to look for.
    """

def count(items, /, scale=1.0):
    """Count items."""

def _hidden(): ...

find_json = {"name": "find"}
'''
FUNCTIONS = read_functions(STUBS)


@pytest.mark.parametrize(
    ("call", "other", "same"),
    [
        ("find('a')", "find(term='a', limit=10, exact=False, tags=None)", True),  # defaults are filled in
        ("find('a', 3)", "find(limit=3, term='a')", True),  # order of keywords
        ("find('a')", "find('A')", False),
        ("find('a', 1)", "find('a', True)", False),  # types count
        ("find('a', 1)", "find('a', 1.0)", False),
        ("find('a', tags=['x'])", "find('a', tags=('x',))", False),
        ("find('a', tags=['x', 'y'])", "find('a', tags=['y', 'x'])", False),
        ("find('a', -3)", "find('a', limit=-3)", True),
        ("count(find('a'))", "count(find(term='a'), scale=1.0)", True),
        ("count(find('a'))", "count(find('b'))", False),
        ("find('a'); find('b')", "find('a')\nfind('b')", True),
        ("find('a'); find('b')", "find('b'); find('a')", False),
        ("find({'a': [1, (2,)]})", "find(term={'a': [1, (2,)]})", True),
    ],
)
def test_calls_are_equal_by_their_bound_arguments(call: str, other: str, same: bool) -> None:
    assert (read_calls(call, FUNCTIONS) == read_calls(other, FUNCTIONS)) is same


def test_inner_calls_come_first_as_python_makes_them() -> None:
    assert [call.name for call in read_calls("count(find('a')); find('b')", FUNCTIONS)] == ["find", "count", "find"]


@pytest.mark.parametrize(
    "text",
    [
        "", "find", "x = find('a')", "find('a') + 1", "find()", "find('a', nope=1)", "find('a', 1, 2)",
        "count(items=1)",
        "__import__('os').system('touch pwned')", "find(__import__('os').system('touch pwned'))", "find(open('x'))",
        "find(*['a'])", "find(**{'term': 'a'})", "find(x)", "find(f'{1}')", "find((lambda: 1)())", "_hidden()",
        "find('a').real", "find([x for x in 'ab'])", "find({[]: 1})", "(" * 50_000, "find(" + "-" * 60_000 + "1)",
        "find(9**9**9)", "x" * 70_000, "find('a'", "\0", "import os", "nvdlib.find('a')",
    ],
    ids=range(28),
)  # fmt: skip
def test_what_is_no_call_is_refused_and_nothing_is_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        calls = read_calls(text, FUNCTIONS)
    except Unreadable:
        calls = []
    assert calls == [] and list(tmp_path.iterdir()) == []


def test_stubs_are_read_and_never_run() -> None:
    assert list(FUNCTIONS) == ["find", "count"] and list(read_functions(STUBS, "co")) == ["count"]
    assert FUNCTIONS["find"].header == (
        "def find(term: str, limit: int=10, *, exact: bool=False, tags: List[str]=None)"
    )
    assert FUNCTIONS["find"].about.startswith("Find things.")


@pytest.mark.parametrize(
    "text", ["find('a')", "`find('a')`", "Call: find('a')", "Sure:\n```python\nfind('a')\n```", "```\nfind('a')```"]
)
def test_marks_around_calls_are_dropped(text: str) -> None:
    assert bare(text) == "find('a')"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    rows = [
        {"Input": "Look for apples.", "Output": "r = nvdlib.find('apples')"},
        {"Input": "Count the pears that you find.", "Output": "count(find('pears', limit=5))"},
        {"Input": "Look for figs, then dates.", "Output": "find('figs'); find('dates')"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tools.py").write_text(STUBS)
    return {"data": str(tmp_path / "rows.jsonl"), "functions": str(tmp_path / "tools.py")}


def perfect(prompt: Content, seed: int) -> str:
    asked = str(prompt[-1]["content"]).rpartition("Request: ")[2]  # type: ignore[index]
    answers = {
        "apples": "find(term='apples')",
        "pears": "count(find('pears', 5))",
        "figs": "find('figs');find('dates')",
    }
    return next(said for word, said in answers.items() if word in asked)


def first_only(prompt: Content, seed: int) -> str:
    return perfect(prompt, seed).replace("count(find('pears', 5))", "find('pears', 5)").partition(";")[0]


@pytest.mark.parametrize(
    ("model", "v1", "v2"),
    [
        (perfect, 1, 1),
        (first_only, 1 / 3, 1),  # V2 looks at the first call alone
        (lambda prompt, seed: "I cannot do that.", 0, 0),
        (lambda prompt, seed: "find('plums')", 0, 0),
    ],
)
def test_models_of_known_score(settings: dict[str, str], model: Callable[..., str], v1: float, v2: float) -> None:
    for version, score in (("v1", v1), ("v2", v2)):
        _, metrics = run_eval("nexus", {**settings, "version": version}, ScriptedModel(model))
        assert metrics["score"] == pytest.approx(score)


def test_what_cannot_be_used_stops_it(settings: dict[str, str], tmp_path: Path) -> None:
    model = ScriptedModel(perfect)
    for change, fault in (
        ({"functions": str(tmp_path / "none.py")}, "cannot be read"),
        ({"prefix": "vt_"}, "no function of that prefix"),
        ({"prefix": "count"}, "which is not on offer"),
        ({"columns": {"Output": "Input"}}, "no call|needs the texts"),
    ):
        with pytest.raises(AlignError, match=fault):
            run_eval("nexus", settings | change, model)
    (tmp_path / "tools.py").write_text("def (")
    with pytest.raises(AlignError, match="not Python"):
        run_eval("nexus", settings, model)
