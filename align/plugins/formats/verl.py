"""``{"data_source": ..., "prompt": [...], "reward_model": {"ground_truth": ...}}``: rows of veRL's Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.core.data import fields
from align.core.data.formats import Format, Shape
from align.core.data.row_errors import RowError
from align.core.data.strict import a
from align.schemas.records import Kind, Record


class Verl(Format):
    """``{"data_source": str, "prompt": messages, "reward_model": {"style": str, "ground_truth": ...}, ...}``.

    All columns are handed on; ``reward_model.ground_truth`` also as ``solution``, which rewards look for.
    """

    name = "verl"
    shapes = (Shape("prompt", ("data_source", "prompt", "reward_model"), kept=("data_source", "reward_model")),)

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The prompt."""
        if not isinstance(row["reward_model"], dict):
            raise RowError("wrong-type", f"is {a(row['reward_model'])}, not an object", "reward_model")
        return fields.join(fields.content(row, "prompt"), "prompt", {})

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """As every format, and the solution found."""
        record = super().convert(row, source)
        if "ground_truth" not in row["reward_model"]:
            return record
        return replace(record, columns={"solution": row["reward_model"]["ground_truth"], **record.columns})
