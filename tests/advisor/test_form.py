"""The empty form says all that the schema says, and says nothing."""

from __future__ import annotations

import re
from pathlib import Path

from align.advisor.blank_form import blank
from align.core.config.project_file import read
from align.schemas.base import field_docstrings
from align.schemas.project import DataSet, Project


def test_the_blank_form_is_an_empty_project(tmp_path: Path) -> None:
    file = tmp_path / "brief.yaml"
    file.write_text(blank("brief.yaml"))
    assert read(str(file), bytes).project == Project()
    assert max(map(len, file.read_text().splitlines())) <= 140


def test_it_has_every_field_with_what_the_schema_says_of_it() -> None:
    text = " ".join(re.sub(r"^ *#* *", "", line) for line in blank("x").splitlines())
    for model in (Project, DataSet):
        for name in set(model.model_fields) - {"measured"}:
            docstring = field_docstrings(model).get(name, "")
            assert f"{name}:" in text and " ".join(docstring.replace("``", "`").split()) in text
    assert "never, yearly, monthly, weekly, daily, realtime" in text


def test_its_example_of_data_is_data_once_the_comment_is_gone(tmp_path: Path) -> None:
    lines = blank("x").splitlines()
    start = lines.index("# data:")
    end = next(n for n in range(start, len(lines)) if not lines[n])
    example = [re.sub("^# ?", "", lines[start]), *(line[1:] for line in lines[start + 1 : end])]
    file = tmp_path / "data.yaml"
    file.write_text("\n".join(example).replace("kind: null", "kind: corpus"))
    assert read(str(file), bytes).project.data == [DataSet(kind="corpus")]
