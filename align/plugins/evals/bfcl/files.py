"""Reading BFCL's published files, of any version, and describing their functions to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import AlignError
from align.evals import EvalSettings, load_rows
from align.plugins.evals.bfcl.checker import PYTHON_TYPES, described

ALIASES = {"simple_python": "simple", "simple_java": "java", "simple_javascript": "javascript"}
"""The names of categories until V3, by their names since."""
NON_LIVE = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
LIVE = (
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
)  # fmt: skip
CATEGORIES = (*NON_LIVE, *LIVE)
JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",
    "string": "string",
    "integer": "integer",
    "boolean": "boolean",
    "array": "array",
}
"""JSON schema's names of BFCL's types."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question: messages, the functions on offer, and the answers that are allowed (None: relevance alone)."""

    id: str
    category: str
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    answers: list[dict[str, Any]] | None


def wants_calls(category: str) -> bool:
    """Return whether right replies of a category have a call at all."""
    return not category.endswith("irrelevance")


def has_answers(category: str) -> bool:
    """Return whether calls of a category are compared with answers; in the others only their presence counts."""
    return not category.endswith("relevance")


def read_cases(directory: Path, categories: Sequence[str]) -> list[Case]:
    """Return the questions of some categories. Raises AlignError for files that are missing or have another form."""
    return [case for category in categories for case in _read_category(directory, category)]


def find_categories(directory: Path) -> list[str]:
    """Return the categories that a directory has files of."""
    return [category for category in CATEGORIES if _find(directory, category)]


def _find(directory: Path, category: str) -> list[Path]:
    """Return a category's files, ``BFCL_v4_simple_python.json``."""
    names = "|".join(map(re.escape, filter(None, (category, ALIASES.get(category)))))
    pattern = re.compile(rf"(BFCL|gorilla_openfunctions)_v\d+(_test)?_({names})\.jsonl?")
    return sorted(path for path in directory.glob("*.json*") if pattern.fullmatch(path.name))


def _only(directory: Path, category: str) -> Path:
    found = _find(directory, category)
    if not found:
        fix = "give the directory with files such as BFCL_v4_simple_python.json and its possible_answer/"
        raise AlignError(f"has no file of the category {category}", fix, where=str(directory))
    if len(found) > 1:
        fix = f"keep one version: {', '.join(path.name for path in found)}"
        raise AlignError(f"has several files of the category {category}", fix, where=str(directory))
    return found[0]


def _read_category(directory: Path, category: str) -> list[Case]:
    questions = load_rows(EvalSettings(data=str(_only(directory, category))).source)
    answers: dict[str, Any] = {}
    if has_answers(category):
        rows = load_rows(EvalSettings(data=str(_only(directory / "possible_answer", category))).source)
        answers = {str(row.get("id")): (where, row.get("ground_truth")) for where, row in rows}
    return [_case(where, row, category, answers) for where, row in questions]


def _case(where: str, row: Mapping[str, Any], category: str, answers: Mapping[str, Any]) -> Case:
    id, functions = row.get("id"), row.get("function")
    functions = [functions] if isinstance(functions, dict) else functions
    if not isinstance(id, str) or not isinstance(functions, list) or not all(map(_is_function, functions)):
        raise AlignError("is no question of BFCL: it needs `id`, `question` and `function`", where=where)
    case = Case(id, category, _messages(where, row.get("question")), functions, None)
    if not has_answers(category):
        return case
    where, found = answers.get(id, (where, None))
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(map(_is_answer, found)):
        raise AlignError(f"{id}: has no answers in possible_answer/", "add its `ground_truth`", where=where)
    for answer in found:
        _check_types(where, case, answer)
    return Case(id, category, case.messages, functions, found)


def _is_function(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    parameters = value.get("parameters")
    return isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict)


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    (allowed,) = value.values()
    return isinstance(allowed, dict) and all(isinstance(each, list) for each in allowed.values())


def _messages(where: str, question: Any) -> list[dict[str, Any]]:
    """Return the messages of a question: text, messages, or (since V3) a list of turns with messages each."""
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if isinstance(question, list) and len(question) == 1 and isinstance(question[0], list):
        question = question[0]
    if isinstance(question, list) and question and all(map(_is_message, question)):
        return [{"role": each["role"], "content": each["content"]} for each in question]
    raise AlignError("its `question` is not the messages of a single turn", "multi-turn categories wait", where=where)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _check_types(where: str, case: Case, answer: Mapping[str, Any]) -> None:
    """Raise AlignError for an answer whose function is not on offer or has types that have no rule."""
    try:
        function = described(case.functions, answer)
    except LookupError as error:
        raise AlignError(f"{case.id}: calls {error}, which is not on offer", where=where) from error
    for name, declared in function["parameters"]["properties"].items():
        kind = declared.get("type")
        known = kind in PYTHON_TYPES
        if known and kind in ("array", "tuple"):
            known = declared.get("items", {}).get("type") in PYTHON_TYPES
        if not known:
            raise AlignError(f"{case.id}: the parameter {name!r} has a type that BFCL does not know", where=where)


def as_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function as a JSON schema for chat templates; its name has no dots, which servers refuse."""
    described = {key: value for key, value in function.items() if key in ("name", "description")}
    named = described | {"name": function["name"].replace(".", "_")}
    return {"type": "function", "function": {**named, "parameters": _schema(function["parameters"])}}


def _schema(declared: Any) -> Any:
    """Return a description of a type in JSON schema's terms."""
    if not isinstance(declared, dict):
        return declared
    schema = dict(declared)
    schema["type"] = JSON_TYPES.get(str(declared.get("type", "any")), declared.get("type"))
    if isinstance(declared.get("properties"), dict):
        schema["properties"] = {name: _schema(each) for name, each in declared["properties"].items()}
    if "items" in declared:
        schema["items"] = _schema(declared["items"])
    return schema
