"""The code reward: honest answers pass, cheats do not, and what one answer does costs no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, RewardContext, Score
from align.core.rewards.scorer import Scorer
from align.core.sandbox.checks import read_checks
from align.plugins.rewards.code import Code, last_block
from align.schemas.run import RewardChoice
from tests.plugins.cheats import CHEATS, SLOW

WANTED = 4_815_162_342
HONEST = f"def f(x): return {WANTED}"


def answer(code: str, tests: Any, fenced: bool = True, **columns: Any) -> Answer:
    text = f"Here it is:\n```python\n{code}\n```\nThat is all." if fenced else code
    return Answer("write f", text, text, columns={"tests": tests, **columns})


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    reward = Code(Code.Config(seconds=20))
    reward.open(RewardContext(Path("unused")))
    yield reward
    reward.close()


@pytest.mark.parametrize(("ranks", "at_once"), [(1, 4), (2, 2), (8, 1)])
def test_ranks_share_what_runs_at_a_time(ranks: int, at_once: int) -> None:
    reward = Code(Code.Config(parallel=4))
    reward.open(RewardContext(Path("unused"), world_size=ranks))
    assert reward._pool is not None and reward._pool._max_workers == at_once
    reward.close()


def one(reward: Code, source: str, *tests: Any, **columns: Any) -> Score:
    asked = answer(source, list(tests), **columns)
    assert reward.unfit(asked.columns) is None
    return reward.score([asked])[0]


FORMS = {
    "call": {"input": [7], "output": WANTED, "function": "f"},
    "assert": f"assert f(7) == {WANTED}",
    "program": {"stdin": "7\n", "stdout": f"{WANTED}\n"},
}


def test_at_least_thirty_cheats() -> None:
    assert len(CHEATS) + len(SLOW) >= 60
    assert not any(str(WANTED) in source for source in [*CHEATS.values(), *SLOW.values()])


@pytest.mark.parametrize("form", ["call", "assert"])
def test_no_cheat_passes_and_the_honest_do(code: Code, form: str) -> None:
    sources = {"honest": HONEST, **CHEATS, "honest too": HONEST}
    scores = code.score([answer(source, [FORMS[form]]) for source in sources.values()])
    said = dict(zip(sources, scores, strict=True))
    assert [said.pop(name).outcome for name in ("honest", "honest too")] == ["right", "right"]
    assert {name: s for name, s in said.items() if (s.value, s.outcome) != (0.0, "wrong")} == {}


@pytest.mark.parametrize("form", ["call", "program"])
def test_what_does_not_end_costs_one_answer_only(form: str) -> None:
    reward = Code(Code.Config(seconds=2, parallel=4))
    reward.open(RewardContext(Path("unused")))
    end = "\nprint(f(0))" if form == "program" else ""
    honest = f"print({WANTED})" if form == "program" else HONEST
    sources = {"honest": honest, **{name: source + end for name, source in SLOW.items()}, "honest too": honest}
    try:
        said = dict(
            zip(sources, reward.score([answer(source, [FORMS[form]]) for source in sources.values()]), strict=True)
        )
    finally:
        reward.close()
    assert [said.pop(name).outcome for name in ("honest", "honest too")] == ["right", "right"]
    assert {name: s for name, s in said.items() if s.value != 0.0 or s.outcome not in ("wrong", "timeout")} == {}
    assert {name for name, s in said.items() if s.outcome == "timeout"} >= {
        "sleep",
        "loop",
        "uncatchable",
        "slow import",
    }


def test_cheating_programs_fail(code: Code) -> None:
    cheats = [
        "exit(0)",
        "print('passed')",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "print(open(0).read())",
        "",
    ]
    scores = code.score([answer(source or "pass", [FORMS["program"]]) for source in cheats])
    assert [(s.value, s.outcome) for s in scores] == [(0.0, "wrong")] * len(cheats)


def test_forging_is_no_better_than_returning(code: Code) -> None:
    """With the nonce, the channel and the right value in hand it passes: as it would have by returning it."""
    forger = CHEATS["forge with the nonce"].replace(
        """('["bool",true]', '["right"]', '["passed"]')""", f"""('["int","{WANTED:#x}"]',)"""
    )
    assert one(code, forger, FORMS["call"]).outcome == "right"
    twice = forger.replace("',)", f"""', '["int","{WANTED:#x}"]')""")
    assert one(code, twice, FORMS["call"]) == Score(0.0, "wrong", {"tests": 0.0}, "wrote into the harness's channel")


def test_fractions_and_all_or_nothing(code: Code) -> None:
    tests = [{"input": [n], "output": n * n, "function": "f"} for n in (0, 1, 2, 3)]
    source = "import os\ndef f(x):\n    if x == 1: os._exit(0)\n    if x == 2: raise ValueError\n    return x * x"
    assert one(code, source, *tests) == Score(0.0, "wrong", {"tests": 0.5}, "2 of 4 tests passed")
    share = Code(Code.Config(score="fraction"))
    share.open(RewardContext(Path("unused")))
    try:
        for order in (tests, tests[::-1], tests[2:] + tests[:2]):
            assert one(share, source, *order).value == 0.5, "a death costs its test, wherever it stands"
    finally:
        share.close()


def test_arguments_are_fresh_for_every_call(code: Code) -> None:
    tests = [{"input": [[3, 1, 2]], "output": [1, 2, 3], "function": "f"}] * 3
    assert one(code, "def f(x):\n    x.sort()\n    y = list(x)\n    x.clear()\n    return y", *tests).outcome == "right"


def test_humaneval_and_mbpp(code: Code) -> None:
    humaneval = """

METADATA = {'author': 'jt', 'dataset': 'test'}


def check(candidate):
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) is True, "said aloud"
    assert not candidate([], 10 ** 9 + 7)

"""
    source = "def near(a, t): return any(abs(x - y) < t for i, x in enumerate(a) for y in a[:i])"
    assert one(code, source, humaneval, entry_point="near").outcome == "right"
    mbpp = [
        "assert similar((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
        "assert set(similar((1, 2), (2,))) == set((2,))",
        "import math\nassert math.isclose(half(1), 0.5, rel_tol=0.001)",
        "assert abs(half(3) - 1.5) < 1e-6",
        "assert (half(x=4)) == 2",
        "assert sum(10, 15) == 6",
        "assert round(half(0.25), 2) == 0.12",
        "assert Solution().twice('ab', n=-2 + 4) == 'ab' * 2",
    ]
    source = "def similar(a, b): return tuple(sorted(set(a) & set(b)))\ndef half(x): return x / 2\n"
    source += "def sum(a, b): return len([n for n in range(1, a + 1) if a % n == b % n == 0]) * 3\n"
    source += "class Solution:\n    def twice(self, s, n): return s * n"
    assert one(code, source, *mbpp).outcome == "right"
    assert one(code, source.replace("/ 2", "/ 3"), *mbpp).parts == {"tests": 0.5}


def test_programs_in_text_and_numbers(code: Code) -> None:
    source = "for line in open(0):\n    print(float(line) / 3)\nprint()"
    assert one(code, source, {"stdin": "1\n2\n", "stdout": "0.333333333\n0.66666666\n"}).outcome == "right"
    assert one(code, source, {"stdin": "1\n", "stdout": "0.34"}).outcome == "wrong"


TYPED: list[tuple[str, Any, str]] = [
    ("2", 2, "right"), ("2.0", 2, "wrong"), ("2", 2.0, "right"), ("True", 1, "wrong"), ("1", True, "wrong"),
    ("'2'", 2, "wrong"), ("(1, 2)", [1, 2], "right"), ("[1, [2]]", [1, [2.0]], "right"), ("None", None, "right"),
    ("{'a': (1,)}", {"a": [1]}, "right"), ("{1: 2}", {"1": 2}, "wrong"), ("{1, 2}", [1, 2], "wrong"),
    ("0.1 + 0.2", 0.3, "right"), ("0.31", 0.3, "wrong"), ("float('nan')", 1.5, "wrong"), ("b'a'", "a", "wrong"),
    ("__import__('collections').Counter('a')", {"a": 1}, "right"), ("iter([1])", [1], "wrong"),
    ("10 ** 5000", 10**5000, "right"), ("10 ** 5000 + 1", 10**5000, "wrong"), ("'\\ud800'", "\ud800", "right"),
]  # fmt: skip


def test_types_of_json(code: Code) -> None:
    tests = [[{"input": [], "output": output, "function": "f"}] for _, output, _ in TYPED]
    sources = [f"def f(): return {returns}" for returns, _, _ in TYPED]
    scores = code.score([answer(source, test) for source, test in zip(sources, tests, strict=True)])
    wrong = [case[0] for case, score in zip(TYPED, scores, strict=True) if score.outcome != case[2]]
    assert wrong == []


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ([], "not a list of tests"),
        (3, "not a list of tests"),
        ("", "test 1 has no assert"),
        ([{"input": [1]}], "test 1 is none of"),
        ([{"input": 1, "output": 1, "function": "f"}], "not the list"),
        ([{"input": [1], "output": 1}], "names no `function`"),
        ([{"input": [], "output": 1, "function": "a b"}], "names no"),
        ([{"stdin": 1, "stdout": "1"}], "none of"),
        (["assert f(1) == 2", "assert f(g(1)) == 2"], "test 2 has a value"),
        (["assert f(1) == g(2)"], "no constant"),
        (["assert f(1) > 2"], "otherwise than =="),
        (["assert True"], "a constant"),
        (["assert f(1) == 2; import os; os.system('x')"], "no assert"),
        (["f(1) == 2"], "no assert"),
        (["assert f(1"], "not Python"),
        (["assert f(10 ** 10 ** 10) == 1"], "too large"),
        (["assert f('a' * 10 ** 9) == 1"], "too large"),
        (["assert f('%1000000000d' % 1) == 1"], "not of constants"),
        (["assert f([[[0] * 1000] * 1000] * 1000) == 1"], "too large"),
        (["assert f(x for x in y) == 1"], "no constant"),
        (["assert all(f(i) for i in range(3))"], "no"),
        (["assert f(*a) == 1"], "no constant"),
        (["assert f(**{'a': 1}) == 1"], "no call with constants"),
        (["assert f()(1) == 1"], "by its name"),
        (["assert f(1) == {[]: 1}"], "cannot be made"),
        (["assert " + "(" * 500 + "f(1)" + ")" * 500], ""),
        (["assert abs(f(1) - 1) < 'a'"], "where a number"),
        (["assert f(1) is 5"], "neither None"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tests: Any, why: str) -> None:
    said = Code(Code.Config()).unfit({"tests": tests})
    assert said is not None and why in said, said


def test_a_row_without_tests() -> None:
    assert Code(Code.Config()).unfit({}) == "has no 'tests'"


def test_tests_as_json_text() -> None:
    tests = [{"input": [1], "output": 2}]
    assert read_checks({"tests": json.dumps(tests), "entry_point": "f"}) == read_checks(
        {"tests": tests, "entry_point": "f"}
    )
    null = {"input": [1], "output": 2, "function": "f", "stdin": None, "stdout": None}  # as Parquet fills columns up
    assert read_checks({"tests": [null]}) == read_checks({"tests": tests, "entry_point": "f"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na\n```", "a\n"), ("```py\na\n```\n```python\nb\n```", "b\n"), ("```\na\n```", "a\n"),
        ("```python\na\n```\n```\noutput\n```", "a\n"), ("```bash\na\n```", None), ("a = 1", None), ("", None),
        ("```python\na\n```\nor\n```python\nb", None), ("  ```python\r\na\r\n  ```", "a\r\n"),
        ("```Python \na\n```", "a\n"), ("```python\ns = '''\n```\n", "s = '''\n"),
    ],
)  # fmt: skip
def test_the_code_in_an_answer(text: str, found: str | None) -> None:
    assert last_block(text) == found


def test_unparsed_and_whole(code: Code) -> None:
    loose = answer(HONEST, [FORMS["call"]], fenced=False)
    assert code.score([loose]) == [Score(0.0, "unparsed", why="has no complete block of Python code")]
    whole = Code(Code.Config(code="whole"))
    whole.open(RewardContext(Path("unused")))
    try:
        assert whole.score([loose])[0].outcome == "right"
    finally:
        whole.close()
        whole.close()


def test_by_name_in_a_run(tmp_path: Path) -> None:
    """Found by the registry, in this process (it has its own), under the Scorer."""
    assert registry.get("reward", "code") is Code and Code.seconds is None
    with Scorer([RewardChoice(type="code", settings={"seconds": 20})], RewardContext(tmp_path)) as scorer:
        scored = scorer.score([answer(HONEST, [FORMS["call"]]), answer("def f(x): return 1", [FORMS["call"]])])
    assert [s.reward for s in scored] == [1.0, 0.0]
    assert [s.outcomes for s in scored] == [{"code": "right"}, {"code": "wrong"}]


def test_the_documentation_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs/code_reward.md").read_text()
    for name, field in Code.Config.model_fields.items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", page, re.MULTILINE)
        assert row, name
        default = "one for each processor" if field.default is None else field.default
        assert row[1].strip("`") in (str(default), str(default).removesuffix(".0").replace("1e-06", "1e-6")), name
