"""``{"input": ..., "output": ...}`` and its relatives: the default keys of OpenRLHF's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.schemas.records import Kind, Record


class OpenRLHF(Format):
    """``{"input"}`` with or without others, each of them a string or messages.

    With ``output`` it is a completion, with ``chosen`` and ``rejected`` a preference, with ``output`` and a boolean
    ``label`` unpaired. Alone it is a prompt, whose ``label`` (the right answer) is handed on and is also ``solution``,
    which rewards look for.
    """

    name = "openrlhf"
    shapes = (
        Shape("prompt", ("input",), optional=("label",), kept=("label",)),
        Shape("completion", ("input", "output")),
        Shape("preference", ("input", "chosen", "rejected"), optional=("margin",)),
        Shape("unpaired", ("input", "output", "label")),
    )

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """Input as the prompt, and what the kind has beside it."""
        prompt = fields.content(row, "input")
        if kind == "preference":
            answers = {name: fields.content(row, name) for name in ("chosen", "rejected")}
            return {**fields.join(prompt, "input", answers), "margin": fields.number(row, "margin")}
        answers = {"completion": fields.content(row, "output")} if kind in ("completion", "unpaired") else {}
        found: dict[str, Any] = fields.join(prompt, "input", answers, "output")
        return {**found, "label": fields.boolean(row, "label")} if kind == "unpaired" else found

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """As every format, and a prompt's label also as its solution."""
        record = super().convert(row, source)
        if record.kind != "prompt" or "label" not in row:
            return record
        return replace(record, columns={"solution": row["label"], **record.columns})
