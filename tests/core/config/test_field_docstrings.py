"""Field docstrings of align's own schemas: as pydantic takes them, but only when they are to be shown."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from align.schemas.base import Config, DeferredConfig, field_docstrings
from align.schemas.run import RewardChoice

SOURCE = """
from __future__ import annotations
from typing import Literal
from pydantic import Field
from align.schemas.base import {base}


class Part({base}):
    \"\"\"A part.\"\"\"

    size: int
    \"\"\"Its size,
    in lines that are indented.\"\"\"


class Whole({base}):
    \"\"\"No field's docstring.\"\"\"

    plain: int = 0
    other: Literal["a", "b"] | None = None
    \"\"\"Of the field above, and of no other.\"\"\"
    part: Part = Part(size=1)
    \"\"\"A reference with a description.\"\"\"
    parts: list[Part] = Field(default_factory=list)
    named: str = Field("", alias="short", description="What the field says counts.")
    \"\"\"And not this.\"\"\"
    renamed: str = Field("", alias="brief")
    \"\"\"Of a field with another name outside.\"\"\"

    def method(self) -> None:
        \"\"\"No field's docstring either.\"\"\"


class Longer(Whole):
    more: int = 0
    \"\"\"Of a derived class.\"\"\"
    plain: int = 1
    \"\"\"Given where the field is given anew.\"\"\"
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[type[Config], type[DeferredConfig]]:
    """The same schema twice: its docstrings taken by pydantic at once, and by align when they are needed."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for base in ("Config", "DeferredConfig"):
        (tmp_path / f"written_{base.lower()}.py").write_text(SOURCE.replace("{base}", base))
    return tuple(importlib.import_module(f"written_{base}").Longer for base in ("config", "deferredconfig"))


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("by_alias", [True, False])
def test_the_json_schema_is_the_one_that_pydantic_makes(
    pair: tuple[type[Config], type[DeferredConfig]], mode: str, by_alias: bool
) -> None:
    at_once, deferred = (model.model_json_schema(by_alias=by_alias, mode=mode) for model in pair)  # type: ignore[arg-type]
    assert str(at_once).count("description") > 8
    assert deferred == at_once


def test_the_docstrings_are_those_that_pydantic_takes(pair: tuple[type[Config], type[DeferredConfig]]) -> None:
    at_once, deferred = pair
    expected = {name: field.description for name, field in at_once.model_fields.items() if field.description}
    assert field_docstrings(deferred) == field_docstrings(at_once) == expected
    assert not any(field.description for name, field in deferred.model_fields.items() if name != "named")


def test_a_field_that_is_inherited_keeps_its_docstring() -> None:
    assert field_docstrings(RewardChoice)["type"] == "The plugin's name."
