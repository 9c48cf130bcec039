"""The reward ``format``: checks the layout of an answer, whatever its content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import fastjsonschema
from pydantic import Field, model_validator

from align import AlignError, Answer, Reward, Score
from align.rewards import Pattern

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)

Tag = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")]


def in_tags(text: str, tags: Sequence[str], outside: Literal["nothing", "after", "anywhere"]) -> str:
    """Return what is wrong with a text that must have each tag once and in order, "" where nothing is.

    outside: the places outside of tags where text may stand.
    """
    at = 0
    for tag in tags:
        for mark in (f"<{tag}>", f"</{tag}>"):
            count = text.count(mark)
            if count != 1:
                return f"has {mark} {count} times"
            place = text.find(mark)
            if place < at:
                return f"has {mark} too early"
            if mark[1] != "/" and outside != "anywhere" and text[at:place].strip():
                return f"has text before {mark}"
            at = place + len(mark)
    return f"has text after </{tags[-1]}>" if outside == "nothing" and text[at:].strip() else ""


class FormatReward(Reward):
    """1 where an answer has the wanted layout (a regular expression, tags in order, a JSON schema), else 0."""

    name = "format"
    seconds: ClassVar[float | None] = 2.0
    """A regular expression, also a schema's, may take for ever; with tags alone it runs in this process."""

    class Config(Reward.Config):
        """The layout that is wanted. Of several settings all must hold."""

        regex: Pattern | None = None
        """A Python regular expression that the whole answer matches (``(?s)`` at its start: ``.`` is a newline too)."""
        search: bool = False
        """regex only: it is enough that it matches somewhere."""
        tags: Annotated[list[Tag], Field(min_length=1)] | None = None
        """``[think, answer]``: ``<think>...</think><answer>...</answer>``, each once and in this order."""
        outside: Literal["nothing", "after", "anywhere"] = "nothing"
        """tags only: where text may stand outside of them."""
        json_schema: dict[str, Any] | None = None
        """A JSON schema (draft 4, 6 or 7) that the answer is valid under; ``{}`` is any JSON."""
        json_in: Literal["whole", "fenced"] = "whole"
        """json_schema only: the JSON is the whole answer, or its last fenced block."""

        @model_validator(mode="after")
        def _something(self) -> FormatReward.Config:
            given, wrong = self.model_fields_set, []
            for setting, to in (("search", "regex"), ("outside", "tags"), ("json_in", "json_schema")):
                if setting in given and getattr(self, to) is None:
                    wrong.append(f"{setting} is read with {to} only")
            if self.regex is None and self.tags is None and self.json_schema is None:
                wrong.append("asks for nothing: give regex, tags or json_schema")
            if wrong:
                raise ValueError("\n".join(wrong))
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._checks: dict[str, Callable[[str], str]] = {}
        if config.tags is not None:
            tags, outside = config.tags, config.outside
            self._checks["tags"] = lambda text: in_tags(text, tags, outside)
        if config.regex is not None:
            pattern = re.compile(config.regex)
            matches = pattern.search if config.search else pattern.fullmatch
            self._checks["regex"] = lambda text: "" if matches(text) else "does not match regex"
        if config.json_schema is not None:
            self._checks["json"] = self._valid_under(config.json_schema)
        if config.regex is None and config.json_schema is None:
            self.seconds = None  # type: ignore[misc]

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """1 or 0, with what is wrong first."""
        return [self._score(answer.text) for answer in answers]

    def _score(self, text: str) -> Score:
        found = {name: check(text) for name, check in self._checks.items()}
        why = "; ".join(filter(None, found.values()))
        parts = {name: float(not wrong) for name, wrong in found.items()}
        return Score(0.0, "wrong", parts, why) if why else Score(1.0, "right", parts)

    def _valid_under(self, schema: dict[str, Any]) -> Callable[[str], str]:
        try:
            validate = fastjsonschema.compile(schema, handlers=_Local(), use_default=False)
        except (fastjsonschema.JsonSchemaDefinitionException, AttributeError, TypeError, ValueError, re.error) as error:
            raise AlignError(f"is not a JSON schema: {error}", where="reward format: json_schema") from None

        def check(text: str) -> str:
            if self.config.json_in == "fenced":
                blocks = _FENCED.findall(text)
                if not blocks:
                    return "has no fenced block"
                text = blocks[-1]
            try:
                validate(json.loads(text, parse_constant=_no_constant))
            except fastjsonschema.JsonSchemaValueException as error:
                return str(error)[:200]
            except (ValueError, RecursionError) as error:
                return f"is not JSON: {error}"[:200]
            return ""

        return check


class _Local(dict[str, Any]):
    """Schemes of references: none is fetched."""

    def __contains__(self, _: object) -> bool:
        return True

    def __getitem__(self, scheme: str) -> Any:
        raise ValueError(f"it refers to a {scheme} address; put what is there into the schema")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
