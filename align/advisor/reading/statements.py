"""Statements: what evidence states, without its words and its number. The names of the learned reader's outputs."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from align.advisor.project_facts import Evidence, Status

FREE = ("task.description", "hardware.gpu", "model.name", "evals.metric")
"""Fields whose value is words of the text."""


class Statement(NamedTuple):
    """A field, its value (None where it is a number or words of the text), and its standing."""

    field: str
    value: Any
    status: Status

    @classmethod
    def of(cls, e: Evidence) -> Statement:
        """Return the statement of a piece of evidence; a denial of yes is no, and of a scorer is none."""
        value, status = e.value, e.status
        if status == "negated" and isinstance(value, bool):
            value, status = not value, "asserted"
        elif status == "negated" and e.field == "reward.kind":
            value, status = "none", "asserted"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return cls(e.field, None if number or e.field in FREE or isinstance(value, list) else value, status)

    @property
    def name(self) -> str:
        """``data.sft_pairs=true|planned``, ``behaviour.rules_count|asserted``."""
        value = "" if self.value is None else f"={str(self.value).lower()}"
        return f"{self.field}{value}|{self.status}"

    @property
    def choice(self) -> str:
        """The name of what can be true in one way only: one number of a field, one standing of a kind of data."""
        exclusive = self.status in ("asserted", "planned", "attributed", "negated")
        return self.field if exclusive else self.name


@functools.cache
def parse(name: str) -> Statement:
    """Return the statement of a name."""
    stated, _, status = name.rpartition("|")
    field, equals, value = stated.partition("=")
    known: dict[str, Any] = {"true": True, "false": False}
    return Statement(field, known.get(value, value) if equals else None, status)  # type: ignore[arg-type]
