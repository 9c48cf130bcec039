"""``bfcl``: the single-turn part of the Berkeley Function-Calling Leaderboard, V2 and V3.

The reply is read as calls (Python syntax by ``ast``, or a chat template's JSON) and compared with allowed answers;
nothing is run. Multi-turn categories need environments and are not read; V2's four executed categories are not either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from align import AlignError, Eval
from align.evals import Episode, Generate, Item, Result, Row, mean, sha
from align.plugins.evals.bfcl.checker import check_calls, dots_kept, dots_replaced
from align.plugins.evals.bfcl.decode import Call, NoCalls, python_calls, tool_calls
from align.plugins.evals.bfcl.files import (
    CATEGORIES,
    LIVE,
    as_tool,
    find_categories,
    has_answers,
    read_cases,
    wants_calls,
)
from align.settings import Sampling

INSTRUCTIONS = """\
You turn requests into function calls. Use only the functions listed below.

If they can fulfil the request, answer with nothing but a list of calls in Python syntax, every argument by its name:
[first_function(name="value", count=3), second_function()]
Call a function as often as the request needs it. If no function fits, or the request lacks a value that a function
requires, say so in a sentence and call nothing.

The functions, as JSON:
{functions}"""
"""Our own wording; what it asks for is BFCL's form."""


class BFCL(Eval):
    """Function calls that are right by BFCL's rules for syntax trees, in categories, with the leaderboard's means.

    Published files are read from a directory as the package ``bfcl-eval`` has it (Apache-2.0).
    """

    name: ClassVar[str] = "bfcl"
    domain: ClassVar[Any] = "tools"
    is_mean: ClassVar[bool] = False

    class Config(Eval.Config):
        """Settings in the suite file."""

        data: str
        """A directory with ``BFCL_v4_simple_python.json`` and its like, and their answers in ``possible_answer``."""
        version: Literal["v2", "v3"] = "v3"
        """The mean that is the headline. ``v3``: of non-live and live. ``v2``: of six columns."""
        categories: list[str] | None = None
        """Categories to measure (null: all single-turn ones that the directory has)."""
        mode: Literal["prompt", "tools"] = "prompt"
        """``prompt``: the functions stand in the system message. ``tools``: the chat template describes them."""
        sampling: dict[str, Any] = Field(default_factory=dict)
        """Settings of ``sampling`` in a run file, in place of temperature 0 and 1024 tokens."""

        @field_validator("categories")
        @classmethod
        def known(cls, names: list[str] | None) -> list[str] | None:
            """Refuse categories that are not read."""
            for name in names or ():
                if name not in CATEGORIES:
                    raise ValueError(f"{name!r} is none of {', '.join(CATEGORIES)}")
            return names

        @field_validator("sampling")
        @classmethod
        def usable(cls, sampling: dict[str, Any]) -> dict[str, Any]:
            """Refuse what are no settings of sampling."""
            Sampling.model_validate(sampling)
            return sampling

    config: Config

    def load(self) -> Sequence[Item]:
        """See ``Eval``. Items that offer the same functions are one cluster."""
        directory = Path(self.config.data)
        if not directory.is_dir():
            fix = "give the directory of its files: pip download --no-deps bfcl-eval, unpacked, has bfcl_eval/data"
            raise AlignError("is no directory of BFCL", fix, where=self.config.data)
        categories = self.config.categories or find_categories(directory)
        return [
            Item(
                case.id,
                case.answers or ("a call" if wants_calls(case.category) else "no call"),
                cluster=sha(case.functions),
                columns={"category": case.category, "messages": case.messages, "functions": case.functions},
                tags=(case.category,),
            )
            for case in read_cases(directory, categories)
        ]

    def run(self, item: Item) -> Episode:
        """See ``Eval``. A reply that is no call is wrong where one is wanted, and counts as not valid."""
        category, functions = item.columns["category"], item.columns["functions"]
        default = Sampling(temperature=0, max_completion_length=1024)
        sampling = Sampling.model_validate({**default.model_dump(), **self.config.sampling})
        messages, native = list(item.columns["messages"]), self.config.mode == "tools"
        if native:
            query = Generate(messages, sampling, tools=[as_tool(function) for function in functions])
        else:
            query = Generate(with_instructions(messages, functions), sampling)
        (reply,) = yield [query]
        calls: list[Call] = []
        fault = ""
        try:
            calls = tool_calls(reply.text) if native else python_calls(reply.text)
        except NoCalls as error:
            fault = str(error)
        if not has_answers(category):
            return Result(float(bool(calls) == wants_calls(category)), extracted=_shown(calls))
        rename = dots_replaced if native else dots_kept
        right = check_calls(category, functions, calls, item.target, rename)
        return Result(float(right), extracted=_shown(calls), valid=not fault, error=fault)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return ``score``, the leaderboard's means, and the share of right replies of each category."""
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(row.tags[0], []).append(row.score)
        means = leaderboard(scores)
        return {"score": means[self.config.version], **means, **{name: mean(each) for name, each in scores.items()}}


def with_instructions(messages: Sequence[Mapping[str, Any]], functions: Sequence[Any]) -> list[dict[str, Any]]:
    """Return messages with the functions in the system message, before what it says already."""
    system = INSTRUCTIONS.format(functions=json.dumps(functions, ensure_ascii=False, indent=2))
    first, rest = messages[0], messages[1:]
    if first["role"] != "system":
        return [{"role": "system", "content": system}, *map(dict, messages)]
    return [{"role": "system", "content": f"{system}\n\n{first['content']}"}, *map(dict, rest)]


def leaderboard(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the means that the leaderboard shows; columns that were not measured are left out of them.

    non_live: of simple, multiple, parallel, parallel_multiple and irrelevance. live: over all its rows. v3: of both
    (the leaderboard has multi-turn as a third). v2: of the four kinds of calls and irrelevance, each the mean of
    non-live and live, and of relevance (the leaderboard has four executed columns in addition).
    """
    by_category = {name: mean(each) for name, each in scores.items()}
    simple = [
        by_category[name] for name in ("simple_python", "simple_java", "simple_javascript") if name in by_category
    ]
    columns = by_category | ({"simple": mean(simple)} if simple else {})
    kinds = ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance")
    found = {
        "non_live": _mean_of(columns.get(kind) for kind in kinds),
        "live": _mean_of(score for name in LIVE for score in scores.get(name, ())),
    }
    found["v3"] = _mean_of(found.values())
    both = [_mean_of((columns.get(kind), columns.get(f"live_{kind}"))) for kind in kinds]
    found["v2"] = _mean_of([*both, columns.get("live_relevance")])
    return {name: value for name, value in found.items() if value is not None}


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _shown(calls: Sequence[Call]) -> str | None:
    """Return decoded calls as text, for the row; None for no call."""
    return repr(list(calls)) if calls else None
