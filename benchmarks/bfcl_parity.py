"""Compare align's BFCL checker with bfcl-eval's own, verdict for verdict, on the data that its wheel carries.

    python -m benchmarks.bfcl_parity [--every N] [--wheel FILE]

The wheel (Apache-2.0) is fetched from PyPI into a cache and never installed or kept here: its checker runs with its
list of vendors' SDKs replaced by a stub. Every case gets correct answers built from its ground truth, and changed ones;
each text is decoded and checked by both, as Python and as a tool call. ``--every N`` takes every Nth case. Without it,
writes results/bfcl_parity.json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import platform
import random
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from align.plugins.evals.bfcl.checker import check_calls, dots_kept, dots_replaced
from align.plugins.evals.bfcl.decode import NoCalls, python_calls
from align.plugins.evals.bfcl.files import Case, has_answers, read_cases
from benchmarks import pypi_wheel

VERSION = "2026.3.23"
CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "irrelevance", "live_irrelevance",
    "live_relevance",
)  # fmt: skip
RESULT = Path(__file__).parent / "results" / "bfcl_parity.json"
Calls = list[tuple[str, dict[str, Any]]]
"""Calls to be written: names and arguments."""


def fetch() -> Path:
    """Return the unpacked wheel, from the cache or PyPI. Raises OSError where it cannot be had."""
    return pypi_wheel.fetch("bfcl-eval", VERSION, "bfcl_eval")


class Theirs(NamedTuple):
    """bfcl-eval's decoder and checker."""

    decode: Callable[[str], Any]
    check: Callable[..., dict[str, Any]]
    well_formed: Callable[[Any], bool]
    empty: Callable[[Any], bool]
    python: Any


def load_theirs(place: Path) -> Theirs:
    """Import the wheel's checker, with stubs for what needs vendors' SDKs or parsers of other languages."""
    stubs: dict[str, dict[str, Any]] = {
        "bfcl_eval.constants.model_config": {
            "MODEL_CONFIG_MAPPING": {
                "prompt": types.SimpleNamespace(underscore_to_dot=False),
                "tools": types.SimpleNamespace(underscore_to_dot=True),
            }
        },
        "bfcl_eval.model_handler.parser.java_parser": {"parse_java_function_call": None},
        "bfcl_eval.model_handler.parser.js_parser": {"parse_javascript_function_call": None},
    }
    names = ("retry", "retry_if_exception_message", "retry_if_exception_type", "wait_random_exponential")
    try:
        import tenacity  # noqa: F401
    except ImportError:
        stubs["tenacity"] = dict.fromkeys(names)
    for name, values in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
    sys.path.insert(0, str(place))
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.model_handler.utils import default_decode_ast_prompting
        from bfcl_eval.utils import is_empty_output, is_function_calling_format_output
    finally:
        sys.path.remove(str(place))
    well_formed = is_function_calling_format_output
    return Theirs(default_decode_ast_prompting, ast_checker, well_formed, is_empty_output, Language.PYTHON)


def verdict_of_theirs(theirs: Theirs, case: Case, text: str, style: str) -> bool | None:
    """Return the package's verdict on a reply; None where it fails with an exception."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            decoded = theirs.decode(text)
    except Exception:
        decoded = None
    if case.answers is None:
        called = decoded is not None and not theirs.empty(decoded)
        return called != case.category.endswith("irrelevance")
    if decoded is None or not theirs.well_formed(decoded):
        return False
    functions, answers = copy.deepcopy(case.functions), copy.deepcopy(case.answers)
    try:
        found = theirs.check(functions, decoded, answers, theirs.python, case.category, style)
    except Exception:
        return None
    return bool(found["valid"])


def verdict_of_ours(case: Case, text: str, style: str) -> bool:
    """Return align's verdict on a reply."""
    try:
        calls = python_calls(text)
    except NoCalls:
        calls = []
    if case.answers is None:
        return bool(calls) != case.category.endswith("irrelevance")
    rename = dots_replaced if style == "tools" else dots_kept
    return check_calls(case.category, case.functions, calls, case.answers, rename)


def written(calls: Calls) -> str:
    """Return calls as a model would write them."""
    each = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]
    return f"[{', '.join(each)}]"


class Bare:
    """A value that is written as it is: a variable's name, an expression."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def plain(value: Any, which: int) -> Any:
    """Return an allowed value as a model would give it: within dicts, one of the values allowed for each key."""
    if isinstance(value, list):
        return [plain(each, which) for each in value]
    if isinstance(value, dict):
        lists = {key: allowed if isinstance(allowed, list) else [allowed] for key, allowed in value.items()}
        chosen = {key: [each for each in allowed if each != ""] for key, allowed in lists.items()}
        return {key: each[which % len(each)] for key, each in chosen.items() if each}
    return value


def right_calls(case: Case, which: int, optional: bool) -> Calls:
    """Return calls with the ``which``-th allowed values. optional: give what may be left out, if a value is known."""
    calls: Calls = []
    for answer in case.answers or ():
        ((name, allowed),) = answer.items()
        given = {}
        for key, values in allowed.items():
            known = [each for each in values if each != ""]
            if known and (optional or "" not in values):
                given[key] = plain(known[which % len(known)], which)
        calls.append((name, given))
    return calls


def other_values(value: Any, draw: random.Random) -> list[Any]:
    """Return values that differ from one: by a little, by type, by order, by what is not compared."""
    found: list[Any] = [Bare("some_variable"), Bare("other(a=1)"), Bare("other(1)"), Bare("x[0]"), None, ""]
    if isinstance(value, bool):
        found += [not value, str(value), int(value)]
    elif isinstance(value, int | float):
        found += [value + 1, -value, str(value), float(value), [value], value == 1, Bare(f"{value} * 1"), Bare("1 / 0")]
    elif isinstance(value, str):
        found += [
            value.upper(), f" {value.replace(' ', '_')}. ", f"{value}x", value[1:], [value], 3, value.replace("'", '"'),
            Bare(value) if value.isidentifier() else value.replace(" ", ""), f"{value}^*-/", value.swapcase(),
        ]  # fmt: skip
    elif isinstance(value, list):
        mixed = [*value]
        draw.shuffle(mixed)
        found += [
            value[::-1], tuple(value), value[:-1], [*value, *value[:1]], [str(each) for each in value], str(value),
            mixed,
            [each.upper() if isinstance(each, str) else each for each in value], [], set() if not value else value[0],
            [float(each) if type(each) is int else each for each in value], [*value[:-1], "zzz"], [value],
        ]  # fmt: skip
        if value and isinstance(value[0], dict):
            found += [[other, *value[1:]] for other in other_values(value[0], draw)]
    elif isinstance(value, dict):
        found += [{}, str(value), [value], {**value, "unexpected": 1}]
        for key in value:
            found += [{name: each for name, each in value.items() if name != key}, {**value, key: "zzz"}]
            found += [{**value, key: other} for other in other_values(value[key], draw)[:12]]
    return found


def variants(case: Case, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of replies to a case, right and wrong ones."""
    if case.answers is None:
        name = case.functions[0]["name"] if case.functions else "f"
        for text in (
            f"[{name}(a=1)]", f"{name}()", "I cannot help with that.", "", "[]", "no", "`[f(x=2)]`", "[{}]", "f(1), 2",
            f"```\n[{name}(a='b')]\n```", "```python\n[f()]\n```", "[f(]", "(f(), g())", "'f()'", "...", "{f()}",
        ):  # fmt: skip
            yield "relevance", text
        return
    best = right_calls(case, 0, True)
    yield "right", written(best)
    for which in (1, 2, 3):
        yield "right: other values", written(right_calls(case, which, True))
    yield "right: optional left out", written(right_calls(case, 0, False))
    yield "bare list", written(best)[1:-1]
    yield "fenced", f"```\n{written(best)}\n```"
    yield "prose", f"Sure: {written(best)}"
    yield "refusal", "None of the functions can be used."
    yield "empty", "[]"
    yield "fewer calls", written(best[:-1])
    yield "more calls", written([*best, best[0]])
    yield "reversed calls", written(best[::-1])
    yield "twice the first", written([best[0]] * len(best))
    yield "positional", written(best).replace("=", "==", 1)
    for place, (name, given) in enumerate(best):
        others = [each["name"] for each in case.functions if each["name"] != name]
        for wrong in (f"{name}_x", name.replace(".", "_"), name.split(".")[-1], *others[:1]):
            yield "name", written([*best[:place], (wrong, given), *best[place + 1 :]])
        changes: list[tuple[str, dict[str, Any]]] = [("extra parameter", {**given, "unexpected": 1})]
        changes.append(("no arguments", {}))
        changes.append(("reversed parameters", dict(reversed(given.items()))))
        for key, value in given.items():
            changes.append(("missing parameter", {each: held for each, held in given.items() if each != key}))
            changes.append(
                ("renamed parameter", {(f"{each}s" if each == key else each): given[each] for each in given})
            )
            changes += [("value", {**given, key: other}) for other in other_values(value, draw)]
        if len(given) > 1:
            first, second, *_ = given
            changes.append(("swapped values", {**given, first: given[second], second: given[first]}))
        for kind, changed in changes:
            yield kind, written([*best[:place], (name, changed), *best[place + 1 :]])


def compare(place: Path, every: int = 1) -> dict[str, Any]:
    """Return the counts of verdicts by category, and those that differ."""
    theirs = load_theirs(place)
    cases = read_cases(place / "bfcl_eval" / "data", CATEGORIES)
    counts: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    differ: list[dict[str, Any]] = []
    for case in cases[::every]:
        tally = counts.setdefault(case.category, Counter())
        tally["cases"] += 1
        draw = random.Random(case.id)
        seen: set[str] = set()
        for kind, text in variants(case, draw):
            if text in seen:
                continue
            seen.add(text)
            for style in ("prompt", "tools") if has_answers(case.category) else ("prompt",):
                ours, other = verdict_of_ours(case, text, style), verdict_of_theirs(theirs, case, text, style)
                tally["replies"] += 1
                kinds[kind] += 1
                if other is None:
                    tally["theirs raised"] += 1
                    tally["theirs raised, ours right"] += ours
                    continue
                tally["right"] += other
                if ours != other:
                    tally["differ"] += 1
                    differ.append({"id": case.id, "kind": kind, "style": style, "text": text, "theirs": other})
    total: Counter[str] = Counter()
    for tally in counts.values():
        total.update(tally)
    by_category = {name: dict(tally) for name, tally in counts.items()}
    return {"total": dict(total), "categories": by_category, "kinds": dict(kinds), "differ": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--wheel", type=Path)
    options = parser.parse_args()
    place = fetch() if options.wheel is None else options.wheel.parent
    if options.wheel is not None and not (place / "bfcl_eval").is_dir():
        pypi_wheel.unpack(options.wheel, place, "bfcl_eval")
    found = compare(place, options.every)
    for each in found["differ"][:40]:
        print(json.dumps(each, ensure_ascii=False)[:400])
    print(json.dumps(found["total"]))
    if options.every == 1:
        head = {"date": datetime.now(UTC).date().isoformat(), "bfcl-eval": VERSION, "python": platform.python_version()}
        shown = {**head, **found, "differ": found["differ"][:100]}
        RESULT.write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
