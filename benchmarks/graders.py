"""Compare the math verifier with the cases of public graders, and with data sets' own solutions.

    python benchmarks/graders.py ROOT

ROOT holds checkouts, or bare git mirrors, of any of the repositories in ``SOURCES``, each in a folder OWNER+NAME (or
OWNER+NAME/repo). Their cases are read from their test files and never kept here. Each solution of a data set must be
right against its own answer.

A case that the verifier pays and the grader does not is *laxer*; one that the grader pays and the verifier does not
is *stricter*. A response in prose that marks no answer, which these graders search for its last formula, is given with
that formula in a box; without a formula it counts as *unmarked*. A case whose gold answer cannot be read is
*unreadable*. Where the two differ and the grader is judged to be wrong, by hand, it is *grader_wrong*. What is left is
well formed. Writes results/graders.json.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.worker_pool import Workers
from align.schemas.run import RewardChoice


class Case(NamedTuple):
    """A gold answer, a response, and whether the grader pays it."""

    kind: str
    gold: str
    response: str
    paid: bool


def text_of(root: Path, repository: str, path: str) -> tuple[str, str]:
    """Return a file of a checkout or a bare mirror, and its commit; both empty where there is none."""
    home = root / repository.replace("/", "+")
    for place in (home, home / "repo", home / ".git"):
        git = ["git", f"--git-dir={place}"]
        shown = subprocess.run([*git, "show", f"HEAD:{path}"], capture_output=True, text=True, check=False)
        if shown.returncode == 0:
            head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
            return shown.stdout, head.stdout.strip()
    return "", ""


def parametrized(source: str) -> Iterator[tuple[str, list[str], tuple[object, ...]]]:
    """Each test's name, its parameters' names and one list of their values, from a pytest file."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if not isinstance(mark, ast.Call) or not ast.unparse(mark.func).endswith("parametrize"):
                continue
            names = [name.strip() for name in ast.literal_eval(mark.args[0]).split(",")]
            for item in mark.args[1].elts if isinstance(mark.args[1], ast.List) else []:
                values = item.elts if isinstance(item, ast.Tuple) else [item]
                yield node.name, names, tuple(map(_value, values))


def _value(node: ast.expr) -> object:
    try:
        return eval(compile(ast.Expression(node), "case", "eval"), {"__builtins__": {}})
    except Exception:
        return ast.unparse(node)


def extraction(source: str) -> Iterator[Case]:
    """Cases of Math-Verify and lighteval: gold, prediction, expected."""
    for name, names, values in parametrized(source):
        row = dict(zip(names, values, strict=False))
        paid = row.get("expected", row.get("result"))
        if isinstance(row.get("gold"), str) and isinstance(row.get("pred"), str) and paid in (0, 1):
            yield Case(name.removeprefix("test_"), str(row["gold"]), str(row["pred"]), bool(paid))


def pairs(source: str) -> Iterator[Case]:
    """NeMo-Skills' pairs, both ways round."""
    for name, _, values in parametrized(source):
        first, second = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        if first is None or second is None:
            continue
        for gold, said in ((first, second), (second, first)):
            yield Case(name.removeprefix("test_"), str(gold), rf"\boxed{{{said}}}", "incorrect" not in name)


def hendrycks(source: str) -> Iterator[Case]:
    """The MATH paper's unit tests: two texts, and whether they are equivalent."""
    for test in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        texts = [_value(node.value) for node in test.body if isinstance(node, ast.Assign)]
        paid = "assertTrue" in ast.unparse(test)
        yield Case(test.name.removeprefix("test_"), str(texts[1]), rf"\boxed{{{texts[0]}}}", paid)


def solutions(source: str) -> Iterator[Case]:
    """MATH's and GSM8K's own solutions, each against itself."""
    for row in map(json.loads, source.splitlines()):
        worked = str(row.get("solution") or row["answer"])
        yield Case(str(row.get("type", "GSM8K")), worked, worked, True)


def judged(source: str) -> Iterator[Case]:
    """GSM8K's example model solutions, with the authors' verdicts."""
    for row in map(json.loads, source.splitlines()):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for name, model in row.items():
            if isinstance(model, dict):
                said = model["solution"].rpartition("A:")[2].strip()
                yield Case(name, gold, f"#### {said}", bool(model["is_correct"]))


SOURCES = {
    ("huggingface/Math-Verify", "tests/test_all.py"): extraction,
    ("huggingface/Math-Verify", "tests/test_boxed.py"): extraction,
    ("huggingface/Math-Verify", "tests/test_numina_cases.py"): extraction,
    ("huggingface/Math-Verify", "tests/test_open_thoughts.py"): extraction,
    ("huggingface/Math-Verify", "tests/test_strict.py"): extraction,
    ("huggingface/Math-Verify", "tests/test_yujianll.py"): extraction,
    ("huggingface/lighteval", "tests/unit/metrics/test_extractive_match.py"): extraction,
    ("NVIDIA/NeMo-Skills", "tests/test_math_equal.py"): pairs,
    ("hendrycks/math", "modeling/math_equivalence_test.py"): hendrycks,
    ("microsoft/ToRA", "src/data/math/test.jsonl"): solutions,
    ("openai/grade-school-math", "grade_school_math/data/train.jsonl"): solutions,
    ("openai/grade-school-math", "grade_school_math/data/test.jsonl"): solutions,
    ("openai/grade-school-math", "grade_school_math/data/example_model_solutions.jsonl"): judged,
}
"""The MATH test set is read from ToRA, which ships it with its solutions."""


LAXER_BY_RIGHT = {
    "order": "hendrycks/math compares texts: 10, 4, -2 is no other list of solutions than 4, 10, -2",
    "decimals": "the same: 0.1, 4, 2 and 4, .1, 2",
}
"""Kinds of cases in which the grader refuses a right answer."""

STRICTER_BY_RIGHT = {
    "a decimal comma is read as a point": "3a26af24 3880eb1f ab0755a8",
    "a number is its percentage, which the setting bare_percent allows": "2c99e996 cfc76152 3704bd70 559ca3a3 7bc880a2",
    "a false equation stands in the answer or the gold": "630ffec8 f4824798 5ee456ad 89634302 31a38c43 5a4c1a03",
    "something is left to work out": "9ee72211 640aaced 1042ba53 d4417a16 55a3042b",
    "rounded to two or five digits": "08667aa7 808b2731",
    "an element is given twice": "75f8a188",
    "another value or object is given": "99e45444 876219ce 7c642f63",
    "the response ends before it answers, or is damaged": "1944ff01 ba243be5 66b718ec 098181cc a23e701d 25d3cbdc",
    "its last formula is not the answer, or words stand for it": "ec20fe3d fe3226d9 3c60fb70 60c12039",
}
"""Cases, told by a hash of gold and response, in which the grader pays what the policy refuses: judged by hand."""
_REFUSED = {digest: why for why, digests in STRICTER_BY_RIGHT.items() for digest in digests.split()}


def digest_of(case: Case) -> str:
    """Name a case without repeating it."""
    return hashlib.sha256(f"{case.gold}\n{case.response}".encode()).hexdigest()[:8]


_MARK = re.compile(r"boxed|fbox|####|<answer>|\banswer\b\W{0,8}(?:is\b|:|=)|\banswer\s*[$\\]", re.I)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)


def marked(text: str) -> tuple[str, bool]:
    """The response, with its last formula in a box where it marks no answer, and whether it has one then."""
    formulas = [next(filter(None, found.groups())) for found in _FORMULA.finditer(text)]
    if (
        _MARK.search(text)
        or _FORMULA.fullmatch(text.strip())
        or not re.search(r"[^\W\d_]{2,} ?[^\W\d_]{2,}|[^\x00-\xff]", text)
    ):
        return text, True
    return (rf"\boxed{{{formulas[-1]}}}", True) if formulas else (text, False)


def compare(root: Path) -> tuple[dict[str, object], list[str]]:
    """Figures by source and kind, and a description of each case that differs."""
    workers = Workers(RewardChoice(type="math"), 3.0, count=2, place=RewardContext(root))
    figures: dict[str, object] = {}
    differing = []
    try:
        for (repository, path), read in SOURCES.items():
            source, commit = text_of(root, repository, path)
            if not source:
                print(f"no {repository}: {path}")
                continue
            cases = list(read(source))
            texts = [marked(case.response) for case in cases]
            scores = workers.score(
                [
                    Answer("q", text, text, columns={"solution": c.gold})
                    for c, (text, _) in zip(cases, texts, strict=True)
                ]
            )
            kinds: dict[str, Counter[str]] = {}
            for case, (text, has_mark), score in zip(cases, texts, scores, strict=True):
                right = score.outcome == "right"
                if right == case.paid:
                    word = "agree"
                elif right:
                    word = "grader_wrong" if case.kind in LAXER_BY_RIGHT else "laxer"
                elif score.outcome == "error":
                    word = "unreadable"
                elif digest_of(case) in _REFUSED:
                    word = "grader_wrong"
                else:
                    word = "stricter" if has_mark else "unmarked"
                kinds.setdefault(case.kind, Counter())[word] += 1
                if word != "agree":
                    differing.append(
                        f"{word} {repository} {case.kind}: {score.outcome}, {score.why or 'unequal'}\n"
                        f"    gold {case.gold[-300:]!r}\n    says {text[-300:]!r}"
                    )
            figures[f"{repository}@{commit}: {path}"] = {kind: dict(counts) for kind, counts in kinds.items()}
    finally:
        workers.close()
    return figures, differing


def totals(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Sums over all kinds, for graders' cases and for solutions; the share of well-formed cases refused."""
    made: dict[str, Any] = {}
    for name, paths in (("graders", ".py"), ("solutions", ".jsonl")):
        counts: Counter[str] = Counter()
        for source, kinds in figures.items():
            for kind in kinds.values() if source.endswith(paths) else ():
                counts.update(kind)
        formed = counts["agree"] + counts["stricter"] + counts["laxer"] + counts["grader_wrong"]
        made[name] = {**counts, "stricter_of_well_formed": round(counts["stricter"] / max(1, formed), 4)}
    return made


def main() -> None:
    figures, differing = compare(Path(sys.argv[1]))
    print("\n".join(differing))
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "mpmath": version("mpmath"),
        "sympy": version("sympy"),
        "totals": totals(figures),
        "grader_wrong": {"paid too little": list(LAXER_BY_RIGHT.values()), "paid too much": list(STRICTER_BY_RIGHT)},
        "sources": figures,
    }
    place = Path(__file__).parent / "results" / "graders.json"
    place.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["totals"], indent=2))


if __name__ == "__main__":
    main()
